"""Rows of a batch, end to end: where each begins, which positions its tokens have, what a pooling leaves out.

Shapes: `B` rows, `T` tokens of all rows. Everything here is numpy on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.device.engine import IntArray, RunRequest

LongArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """Int32 `token_ids` [T] and maybe `type_ids` [T] of rows of `lengths` [B]; `skip` [B] leading tokens unpooled."""

    lengths: LongArray
    token_ids: IntArray
    type_ids: IntArray | None = None
    skip: LongArray | None = None

    @classmethod
    def of_request(cls, request: RunRequest) -> Rows:
        """The rows of a request."""
        skip = None if request.skip is None or not any(request.skip) else np.asarray(request.skip, dtype=np.int64)
        return cls(np.asarray(request.lengths, dtype=np.int64), request.token_ids, request.type_ids, skip)

    @classmethod
    def of_lists(cls, rows: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]] | None = None) -> Rows:
        """Rows from lists of token ids."""
        flat = np.asarray([token for row in rows for token in row], dtype=np.int32)
        types = None if type_ids is None else np.asarray([t for row in type_ids for t in row], dtype=np.int32)
        return cls(np.asarray([len(row) for row in rows], dtype=np.int64), flat, types)

    @classmethod
    def joined(cls, rows: Sequence[Rows]) -> Rows:
        """All rows of several batches, one after the other; `skip` is left out. Type ids must be in all or in none."""
        types = [part.type_ids for part in rows if part.type_ids is not None]
        return cls(
            lengths=np.concatenate([part.lengths for part in rows]),
            token_ids=np.concatenate([part.token_ids for part in rows]),
            type_ids=np.concatenate(types) if types else None,
        )

    @property
    def starts(self) -> LongArray:
        """Index [B] of each row's first token."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def offsets(self) -> LongArray:
        """Offset [T] of each token within its row, from 0."""
        return np.arange(len(self.token_ids)) - np.repeat(self.starts, self.lengths)

    def part(self, start: int, end: int) -> Rows:
        """The rows from `start` to `end`."""
        if start == 0 and end == len(self.lengths):
            return self
        first = int(self.lengths[:start].sum())
        last = first + int(self.lengths[start:end].sum())
        return Rows(
            lengths=self.lengths[start:end],
            token_ids=self.token_ids[first:last],
            type_ids=None if self.type_ids is None else self.type_ids[first:last],
            skip=None if self.skip is None else self.skip[start:end],
        )

    def position_ids(self, *, offset: int, pad_token_id: int) -> LongArray:
        """Position ids [T] as the model itself gives them to a row alone, from `offset` on.

        The roberta family (`offset` above 0) gives padding tokens, also those that a text names, the padding position
        and does not count them.
        """
        if offset == 0:
            return self.offsets
        is_real = self.token_ids != pad_token_id
        if is_real.all():
            return self.offsets + offset
        counted = np.cumsum(is_real)
        before = np.repeat(counted[self.starts] - is_real[self.starts], self.lengths)
        return np.where(is_real, counted - before - 1 + offset, offset - 1)
