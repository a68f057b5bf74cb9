"""Rows as the model takes them: token ids, cut to the maximum length, and labels. `B` rows, `T` padded tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from workers.training.child.losses import IGNORED

IntArray = np.ndarray[Any, np.dtype[np.int32]]
Label = int | float | Sequence[float] | Sequence[int]
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Row:
    """One training row; `label`: an id, a number, a vector over the labels, or one id a token (IGNORED: not scored)."""

    ids: IntArray
    type_ids: IntArray | None
    label: Label


class EncodedRows(Dataset[Row]):
    """All rows of a split, in memory."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row.ids) for row in self._rows]


class Collator:
    """Pads rows to the longest of the batch."""

    def __init__(self, *, pad_token_id: int, is_tagging: bool) -> None:
        self._pad_token_id = pad_token_id
        self._is_tagging = is_tagging

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """int64 `input_ids`, `attention_mask` (and `token_type_ids`) [B, T]; `labels` [B], [B, C] or [B, T]."""
        batch = {
            "input_ids": _padded([row.ids for row in rows], self._pad_token_id),
            "attention_mask": _padded([np.ones_like(row.ids) for row in rows], 0),
        }
        if rows[0].type_ids is not None:
            batch["token_type_ids"] = _padded([row.type_ids for row in rows if row.type_ids is not None], 0)
        if self._is_tagging:
            batch["labels"] = _padded([np.asarray(row.label, dtype=np.int32) for row in rows], IGNORED)
        else:
            batch["labels"] = torch.tensor([row.label for row in rows])
        return batch


def _padded(values: Sequence[IntArray], padding: int) -> torch.Tensor:
    width = max(len(value) for value in values)
    matrix = torch.full((len(values), width), padding, dtype=torch.long)
    for index, value in enumerate(values):
        matrix[index, : len(value)] = torch.from_numpy(value.astype(np.int64))
    return matrix
