"""Padded forward passes: rows side by side [B, L], filled up to the longest; for models that cannot be packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from workers.device.host_copies import to_device
from workers.device.rows import Rows
from workers.device.states import States


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the tokens of rows stand when padded: `mask` [B, L] is True for real tokens; `num_padding` are not."""

    is_real: npt.NDArray[np.bool_]
    mask: torch.Tensor
    num_padding: int

    @classmethod
    def of_rows(cls, rows: Rows, device: torch.device) -> Grid:
        """The grid of `rows`, its mask on `device`."""
        num_rows, width = len(rows.lengths), int(rows.lengths.max())
        is_real = np.arange(width) < rows.lengths[:, None]
        num_padding = num_rows * width - len(rows.token_ids)
        return cls(is_real, to_device(is_real, device), num_padding)

    def inputs(self, rows: Rows, pad_token_id: int) -> dict[str, Any]:
        """What a model is called with; rows of equal length, or one alone, go through without a mask."""
        device = self.mask.device
        inputs: dict[str, Any] = {"input_ids": fill(rows.token_ids, self.is_real, pad_token_id, device)}
        if self.num_padding:
            inputs["attention_mask"] = self.mask.long()
        if rows.type_ids is not None:
            inputs["token_type_ids"] = fill(rows.type_ids, self.is_real, 0, device)
        return inputs

    def flatten(self, values: torch.Tensor) -> torch.Tensor:
        """From [B, L, X] to [T, X]: rows end to end, padding taken out."""
        slots = values.flatten(0, 1)
        return slots[to_device(np.flatnonzero(self.is_real), slots.device)] if self.num_padding else slots


def forward_padded(model: torch.nn.Module, rows: Rows, *, layer: int, pad_token_id: int) -> States:
    """Token states of all rows in one pass, padding taken out again; the model makes its own positions.

    `layer` -1 is the last. Rows of equal length, or one alone, go through without a mask.
    """
    grid = Grid.of_rows(rows, next(model.parameters()).device)
    inputs = grid.inputs(rows, pad_token_id)
    if layer != -1:
        inputs["output_hidden_states"] = True
    output = model(**inputs)
    flat = grid.flatten(output.last_hidden_state if layer == -1 else output.hidden_states[layer])
    pooled = getattr(output, "pooler_output", None)
    if pooled is None or layer != -1:
        return States(flat, grid.num_padding)
    return States(flat, grid.num_padding, pooled=lambda: pooled)


def fill(
    numbers: npt.NDArray[np.int32], is_real: npt.NDArray[np.bool_], padding: int, device: torch.device
) -> torch.Tensor:
    """Int64 grid [B, L] on `device`: the numbers [T] in their places, `padding` elsewhere."""
    grid = np.full(is_real.shape, padding, dtype=np.int64)
    grid[is_real] = numbers
    return to_device(grid, device)
