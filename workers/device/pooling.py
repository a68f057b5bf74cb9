"""From token vectors to one vector a row: every mode of `PoolingMode` but none, over rows end to end.

Shapes: `B` rows, `T` tokens of all rows, `H` hidden. Arithmetic is float32 whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch

from ondol.contract.errors import ModelCannot
from ondol.contract.model_spec import PoolingMode
from workers.device.host_copies import to_device
from workers.device.rows import LongArray, Rows
from workers.device.states import States


def pool(states: States, rows: Rows, modes: Sequence[PoolingMode]) -> torch.Tensor:
    """Float32 vectors [B, H · number of modes], modes concatenated in order.

    Tokens that a row skips count for nothing; a row with all of its tokens skipped gives zeros (cls: its first token).
    ModelCannot `model_has_no_pooler` when pooler is asked of a model without one.
    """
    tokens = _PooledTokens(states, rows)
    vectors = [_POOLINGS[mode](tokens) for mode in modes]
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)


class _PooledTokens:
    """The tokens that count, and what several modes need of them, computed at most once."""

    def __init__(self, states: States, rows: Rows) -> None:
        self.states = states
        self.rows = rows
        skip: LongArray = np.zeros_like(rows.lengths) if rows.skip is None else np.minimum(rows.skip, rows.lengths)
        self.skip = skip
        self.kept_lengths: LongArray = rows.lengths - skip

    @cached_property
    def kept_offsets(self) -> LongArray:
        """Offsets [K] within their rows of the tokens that count."""
        offsets = self.rows.offsets
        return offsets if self.rows.skip is None else offsets[offsets >= np.repeat(self.skip, self.rows.lengths)]

    @cached_property
    def kept(self) -> torch.Tensor:
        """Float32 states [K, H] of the tokens that count."""
        if self.rows.skip is None:
            return self.states.hidden.float()
        is_kept = self.rows.offsets >= np.repeat(self.skip, self.rows.lengths)
        return self.states.hidden[self.on_device(np.flatnonzero(is_kept))].float()

    @cached_property
    def total(self) -> torch.Tensor:
        """Sums [B, H] of the tokens that count."""
        return self.reduce(self.kept, "sum", initial=0.0)

    @cached_property
    def counts(self) -> torch.Tensor:
        """Numbers [B, 1] of tokens that count, at least 1."""
        return self.on_device(np.maximum(self.kept_lengths, 1)).float()[:, None]

    def reduce(self, tokens: torch.Tensor, how: str, *, initial: float) -> torch.Tensor:
        """Reduce [K, H] to [B, H], row by row; rows without tokens give `initial`."""
        lengths = self.on_device(self.kept_lengths)
        return torch.segment_reduce(tokens, how, lengths=lengths, axis=0, unsafe=True, initial=initial)

    def take(self, index: LongArray) -> torch.Tensor:
        """Float32 states [B, H] at these indices of all tokens."""
        return self.states.hidden[self.on_device(index)].float()

    def on_device(self, numbers: LongArray) -> torch.Tensor:
        """`numbers` where the states are."""
        return to_device(numbers, self.states.hidden.device)


def _mean(tokens: _PooledTokens) -> torch.Tensor:
    return tokens.total / tokens.counts


def _mean_sqrt_len(tokens: _PooledTokens) -> torch.Tensor:
    return tokens.total / tokens.counts.sqrt()


def _cls(tokens: _PooledTokens) -> torch.Tensor:
    first_kept = np.where(tokens.kept_lengths > 0, tokens.skip, 0)
    return tokens.take(tokens.rows.starts + first_kept)


def _last(tokens: _PooledTokens) -> torch.Tensor:
    lasts = tokens.take(tokens.rows.starts + tokens.rows.lengths - 1)
    return lasts * (tokens.on_device(tokens.kept_lengths) > 0)[:, None]


def _max(tokens: _PooledTokens) -> torch.Tensor:
    highest = tokens.reduce(tokens.kept, "max", initial=float("-inf"))
    return highest.masked_fill(highest == float("-inf"), 0.0)


def _weighted_mean(tokens: _PooledTokens) -> torch.Tensor:
    """Later tokens weigh more: 1, 2, 3 … by place in the whole row, skipped tokens counted."""
    weights = tokens.on_device(tokens.kept_offsets + 1).float()[:, None]
    weighted = tokens.reduce(tokens.kept * weights, "sum", initial=0.0)
    return weighted / tokens.reduce(weights, "sum", initial=0.0).clamp(min=1.0)


def _pooler(tokens: _PooledTokens) -> torch.Tensor:
    if tokens.states.pooled is None:
        raise ModelCannot("the model has no trained pooler", param="spec.pooling", code="model_has_no_pooler")
    return tokens.states.pooled().float()


_POOLINGS: dict[PoolingMode, Callable[[_PooledTokens], torch.Tensor]] = {
    PoolingMode.MEAN: _mean,
    PoolingMode.CLS: _cls,
    PoolingMode.MAX: _max,
    PoolingMode.LAST: _last,
    PoolingMode.POOLER: _pooler,
    PoolingMode.MEAN_SQRT_LEN: _mean_sqrt_len,
    PoolingMode.WEIGHTED_MEAN: _weighted_mean,
}
