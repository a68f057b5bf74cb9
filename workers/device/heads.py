"""Task heads: the version's own head, unchanged, over states that a packed base model gave, or behind a padded one.

The head's code is the architecture's: its `forward` is run with the base model in it replaced by one that returns given
states. What such a head reads (first state, pooler, mean, each token) is its own affair, so `head_probing.py` finds out
by trying which layout of the states is right. Shapes: `B` rows, `T` tokens of all rows, `C` classes, `H` hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ondol.contract.errors import ModelRefused
from workers.device.head_tasks import TOKEN_TASK
from workers.device.host_copies import to_device
from workers.device.packed import forward_packed
from workers.device.padded import Grid, fill
from workers.device.rows import LongArray, Rows
from workers.device.states import States

_MAX_FILL = 1.25
"""Padded to unpadded tokens of a bucket; the head is a small part of the work, so some padding costs little."""


class Layout(StrEnum):
    """How the head gets what it reads; the first two leave the base model packed."""

    FLAT = "flat"
    """A text's first state alone [B, 1, H]; for tokens, all states in one sequence [1, T, H]."""
    OWN_STATES = "own states"
    """Each text's own states [B, L, H], padded in buckets of like length."""
    PADDED = "padded"
    """The whole model over padded rows, with a mask."""
    ALONE = "alone"
    """The whole model, one row a pass: right by definition, for heads that read padding."""


PACKED_LAYOUTS = (Layout.FLAT, Layout.OWN_STATES)


@dataclass(frozen=True, slots=True)
class Logits:
    """Float32 `values` [B, C] ([T, C] for tokens) on the device, and the padding that the base model computed."""

    values: torch.Tensor
    num_padding: int


class TaskHead:
    """A model with a head; `layout` is how `logits` runs it, set once by the probe. One thread at a time."""

    def __init__(self, model: nn.Module, *, task: str, position_offset: int, pad_token_id: int, ref: str) -> None:
        """ModelRefused for a head that keeps its base model where transformers does not say."""
        prefix = str(getattr(model, "base_model_prefix", ""))
        base = getattr(model, prefix, None) if prefix else None
        if not isinstance(base, nn.Module):
            raise ModelRefused(f"{ref}: {type(model).__name__} does not name its base model")
        self.model = model
        self.base = base
        self.layout = Layout.ALONE
        self._prefix = prefix
        self._gives_tokens = task == TOKEN_TASK
        self._position_offset = position_offset
        self._pad_token_id = pad_token_id

    def logits(self, rows: Rows) -> Logits:
        """Logits of `rows` by the layout; the base model's attention must be the one that the layout needs."""
        return self.logits_by(self.layout, rows)

    def logits_by(self, layout: Layout, rows: Rows) -> Logits:
        """Logits of `rows` by this layout, right for this head or not."""
        if layout is Layout.PADDED:
            return self._whole(rows)
        if layout is Layout.ALONE:
            singles = [self._whole(rows.part(row, row + 1)).values for row in range(len(rows.lengths))]
            return Logits(torch.cat(singles), num_padding=0)
        states = forward_packed(
            self.base, rows, layer=-1, position_offset=self._position_offset, pad_token_id=self._pad_token_id
        )
        return Logits(self._flat(states, rows) if layout is Layout.FLAT else self._own(states, rows), num_padding=0)

    def _whole(self, rows: Rows) -> Logits:
        """The model as it stands, over padded rows."""
        grid = Grid.of_rows(rows, next(self.model.parameters()).device)
        values = self.model(**grid.inputs(rows, self._pad_token_id)).logits.float()
        return Logits(grid.flatten(values) if self._gives_tokens else values, grid.num_padding)

    def _flat(self, states: States, rows: Rows) -> torch.Tensor:
        if self._gives_tokens:
            token_ids = to_device(rows.token_ids, states.hidden.device).long()
            return self._over(states.hidden[None], None, token_ids[None])[0]
        starts = to_device(rows.starts, states.hidden.device)
        token_ids = to_device(rows.token_ids[rows.starts], states.hidden.device).long()
        return self._over(states.hidden[starts][:, None], _pooled(states), token_ids[:, None])

    def _own(self, states: States, rows: Rows) -> torch.Tensor:
        pooled = None if self._gives_tokens else _pooled(states)
        found: torch.Tensor | None = None
        for bucket in buckets(rows.lengths):
            places = token_places(rows, bucket)
            values = self._over_bucket(states, pooled, rows, bucket)
            if found is None:
                size = len(rows.token_ids) if self._gives_tokens else len(rows.lengths)
                found = values.new_empty((size, values.shape[-1]))
            where = places if self._gives_tokens else bucket
            found[to_device(where, found.device)] = values
        assert found is not None, "a batch has at least one row"
        return found

    def _over_bucket(self, states: States, pooled: torch.Tensor | None, rows: Rows, bucket: LongArray) -> torch.Tensor:
        """Logits [b, C] of the rows of a bucket, or [t, C] of their tokens."""
        device = states.hidden.device
        is_real = np.arange(rows.lengths[bucket].max()) < rows.lengths[bucket][:, None]
        places, slots = token_places(rows, bucket), to_device(np.flatnonzero(is_real), device)
        hidden = states.hidden.new_zeros((is_real.size, states.hidden.shape[-1]))
        hidden[slots] = states.hidden[to_device(places, device)]
        token_ids = fill(rows.token_ids[places], is_real, self._pad_token_id, device)
        chosen = None if pooled is None else pooled[to_device(bucket, device)]
        mask = None if is_real.all() else to_device(is_real, device).long()
        values = self._over(hidden.view(*is_real.shape, -1), chosen, token_ids, mask)
        return values.flatten(0, 1)[slots] if self._gives_tokens else values

    def _over(
        self,
        hidden: torch.Tensor,
        pooled: torch.Tensor | None,
        token_ids: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The head's own forward over these states."""
        with self._given(_GivenStates(hidden, pooled)):
            inputs: dict[str, Any] = {"input_ids": token_ids}
            if mask is not None:
                inputs["attention_mask"] = mask
            return torch.as_tensor(self.model(**inputs).logits.float())

    @contextmanager
    def _given(self, states: _GivenStates) -> Iterator[None]:
        """The model with `states` in the place of its base model."""
        setattr(self.model, self._prefix, states)
        try:
            yield
        finally:
            setattr(self.model, self._prefix, self.base)


class _GivenStates(nn.Module):
    """Stands in for a base model: whatever it is asked, it answers these states."""

    def __init__(self, hidden: torch.Tensor, pooled: torch.Tensor | None) -> None:
        super().__init__()
        self._hidden = hidden
        self._pooled = pooled

    def forward(self, *_args: Any, **_kwargs: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self._hidden, pooler_output=self._pooled)


def _pooled(states: States) -> torch.Tensor | None:
    return None if states.pooled is None else states.pooled()


def token_places(rows: Rows, chosen: LongArray) -> LongArray:
    """Indices of all tokens of the chosen rows, row after row."""
    lengths = rows.lengths[chosen]
    before = np.cumsum(lengths) - lengths
    places: LongArray = np.arange(lengths.sum()) + np.repeat(rows.starts[chosen] - before, lengths)
    return places


def buckets(lengths: LongArray) -> list[LongArray]:
    """Indices of rows, all rows once, in groups of like length."""
    order = np.argsort(lengths, kind="stable")
    found, start, num_tokens = [], 0, 0
    for end, row in enumerate(order):
        if end > start and lengths[row] * (end + 1 - start) > _MAX_FILL * (num_tokens + lengths[row]):
            found.append(order[start:end])
            start, num_tokens = end, 0
        num_tokens += int(lengths[row])
    return [*found, order[start:]]
