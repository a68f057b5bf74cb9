"""Padded forward passes: rows side by side [B, L], filled up to the longest; for models that cannot be packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from workers.device.rows import Rows
from workers.device.states import States


def forward_padded(model: torch.nn.Module, rows: Rows, *, layer: int, pad_token_id: int) -> States:
    """Token states of all rows in one pass, padding taken out again; the model makes its own positions.

    `layer` -1 is the last. Rows of equal length, or one alone, go through without a mask.
    """
    device = next(model.parameters()).device
    num_rows, width = len(rows.lengths), int(rows.lengths.max())
    is_real = np.arange(width) < rows.lengths[:, None]
    num_padding = num_rows * width - len(rows.token_ids)
    inputs: dict[str, Any] = {"input_ids": _fill(rows.token_ids, is_real, pad_token_id, device)}
    mask = torch.as_tensor(is_real, device=device)
    if num_padding:
        inputs["attention_mask"] = mask.long()
    if rows.type_ids is not None:
        inputs["token_type_ids"] = _fill(rows.type_ids, is_real, 0, device)
    if layer != -1:
        inputs["output_hidden_states"] = True
    output = model(**inputs)
    hidden = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
    flat = hidden[mask] if num_padding else hidden.flatten(0, 1)
    pooled = getattr(output, "pooler_output", None)
    if pooled is None or layer != -1:
        return States(flat, num_padding)
    return States(flat, num_padding, pooled=lambda: pooled)


def _fill(
    numbers: np.ndarray[Any, Any], is_real: np.ndarray[Any, Any], fill: int, device: torch.device
) -> torch.Tensor:
    grid = np.full(is_real.shape, fill, dtype=np.int64)
    grid[is_real] = numbers
    return torch.as_tensor(grid, device=device)
