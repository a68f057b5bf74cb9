"""The order of training rows: a function of seed and epoch alone, so that a resumed run sees the rows it would have.

The libraries' own samplers draw from the global random state, and accelerate's loader counts epochs from zero after a
resume; both would replay other rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

_GROUPED_BATCHES = 50
"""Batches among whose rows lengths are sorted: enough to save padding, few enough to keep batches mixed."""


class EpochBatches(Sampler[list[int]]):
    """Batches of row numbers for the epoch that was set; all rows once an epoch.

    Without `group_by_length` in the order that a plain Trainer script draws by this seed. With it, rows of like length
    share a batch, batches come in random order, the longest row's batch first, so that memory runs out at once if it
    is going to.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int, group_by_length: bool) -> None:
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._batch_size = batch_size
        self._seed = seed
        self._group_by_length = group_by_length
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is for."""
        self._epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self._lengths) / self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        if not self._group_by_length:
            return iter(self._batches(self._as_the_library_draws()))
        random = np.random.default_rng([self._seed, self._epoch])
        order = random.permutation(len(self._lengths))
        group = self._batch_size * max(1, min(len(order) // (self._batch_size * 4), _GROUPED_BATCHES))
        groups = [order[start : start + group] for start in range(0, len(order), group)]
        batches = self._batches(np.concatenate([self._longest_first(rows) for rows in groups]))
        shuffled = [batches[index] for index in random.permutation(len(batches))]
        longest = max(range(len(shuffled)), key=lambda index: max(self._lengths[shuffled[index]]))
        shuffled[0], shuffled[longest] = shuffled[longest], shuffled[0]
        return iter(shuffled)

    def _as_the_library_draws(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The order of accelerate's `SeedableRandomSampler`, that of a plain Trainer script with this seed."""
        generator = torch.Generator()
        generator.manual_seed(self._seed + self._epoch)
        return np.asarray(torch.randperm(len(self._lengths), generator=generator).numpy(), dtype=np.int64)

    def _batches(self, order: np.ndarray[Any, np.dtype[np.int64]]) -> list[list[int]]:
        rows = order.tolist()
        return [rows[start : start + self._batch_size] for start in range(0, len(rows), self._batch_size)]

    def _longest_first(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
        return rows[np.argsort(-self._lengths[rows], kind="stable")]


class EpochLoader(DataLoader[Any]):
    """A loader that hands the Trainer's epoch to `EpochBatches`, and leaves the global random state alone."""

    def __init__(self, rows: Dataset[Any], batches: EpochBatches, collate: Callable[[list[Any]], Any]) -> None:
        # A loader without a generator of its own draws a seed from the global one at every epoch.
        super().__init__(rows, batch_sampler=batches, collate_fn=collate, generator=torch.Generator())
        self._epoch_batches = batches

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self._epoch_batches.set_epoch(epoch)
