"""Packed forward passes: rows end to end in one sequence [1, T], attention kept inside each row, no padding.

The attention is plugged in through transformers' public interfaces; the models' own code stays as it is. Models whose
code ignores that interface are found by `probing.py`. Shapes: `T` tokens of all rows, `N` heads, `D` width of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface

from workers.device.grids import Grids
from workers.device.host_copies import to_device
from workers.device.rows import LongArray, Rows
from workers.device.states import States

PACKED_ATTENTION = "ondol_packed"
_UNSUPPORTED = ("position_bias", "softcap", "s_aux", "past_key_values", "cache")
_VARLEN_DTYPES = (torch.bfloat16, torch.float16)
_VARLEN_CAPABILITY = 8
"""The oldest GPUs on which the flash-attention kernels run, and the widths of a head that they take."""
_VARLEN_MAX_WIDTH, _VARLEN_WIDTH_STEP = 256, 8
_ATTEND_VARLEN: Callable[..., Any] = varlen_attn
_SAYS_GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""Torch 2.11 groups heads without being told to, and does not know the word."""


@dataclass(slots=True)
class Segments:
    """The rows of one packed sequence for the attention, by their `lengths` [B]; what it needs is made at first use."""

    lengths: LongArray
    device: torch.device
    window_masks: dict[tuple[int, int, bool], torch.Tensor] = field(default_factory=dict)
    _bounds: list[tuple[int, int]] | None = None
    _cumulative: torch.Tensor | None = None
    _grids: Grids | None = None

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Start and end of each row."""
        if self._bounds is None:
            ends = self.lengths.cumsum().tolist()
            self._bounds = list(zip([0, *ends[:-1]], ends, strict=True))
        return self._bounds

    @property
    def cumulative(self) -> torch.Tensor:
        """Where rows begin and the last one ends, int32 [B + 1] on the device."""
        if self._cumulative is None:
            starts_and_end = np.concatenate([[0], self.lengths.cumsum()]).astype(np.int32)
            self._cumulative = to_device(starts_and_end, self.device)
        return self._cumulative

    @property
    def grids(self) -> Grids:
        """The rows side by side."""
        if self._grids is None:
            self._grids = Grids.of_lengths(self.lengths, self.device)
        return self._grids


def register_packed_attention() -> None:
    """Make `PACKED_ATTENTION` known to transformers; a second call changes nothing."""
    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    AttentionMaskInterface.register(PACKED_ATTENTION, _no_mask)


def forward_packed(
    model: torch.nn.Module, rows: Rows, *, layer: int, position_offset: int, pad_token_id: int
) -> States:
    """Token states of all rows in one pass by a model whose attention is `PACKED_ATTENTION`; `layer` -1 is the last."""
    device = next(model.parameters()).device
    positions = rows.position_ids(offset=position_offset, pad_token_id=pad_token_id)
    inputs: dict[str, Any] = {
        "input_ids": to_device(rows.token_ids, device).long()[None],
        "position_ids": to_device(positions, device)[None],
        "packed_segments": Segments(rows.lengths, device),
    }
    if rows.type_ids is not None:
        inputs["token_type_ids"] = to_device(rows.type_ids, device).long()[None]
    if layer != -1:
        inputs["output_hidden_states"] = True
    output = model(**inputs)
    hidden = (output.last_hidden_state if layer == -1 else output.hidden_states[layer])[0]
    pooler = getattr(model, "pooler", None)
    if pooler is None or layer != -1:
        return States(hidden, num_padding=0)
    return States(hidden, num_padding=0, pooled=lambda: _pool(model, hidden[to_device(rows.starts, device)]))


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_segments: Segments | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention [1, T, N, D] of query, key and value [1, N, T, D], within each segment.

    `sliding_window`: a token sees those less than that many places away. NotImplementedError for what this cannot do:
    the caller then takes the padded way.
    """
    if packed_segments is None or attention_mask is not None:
        raise NotImplementedError("the model does not hand the segments of a packed batch to its attention")
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"packed attention does not know {name}")
    causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal
    if query.is_cuda and _takes_varlen(query):
        return _attend_varlen(query, key, value, packed_segments, scaling, sliding_window, causal=causal), None
    if query.is_cuda:
        grids = packed_segments.grids
        return grids.attend(query, key, value, scaling=scaling, window=sliding_window, causal=causal), None
    return _attend_each(query, key, value, packed_segments, scaling, sliding_window, causal=causal), None


def _takes_varlen(query: torch.Tensor) -> bool:
    """Whether the flash-attention kernel takes such a query; what it does not take goes through grids."""
    width = query.shape[-1]
    return (
        query.dtype in _VARLEN_DTYPES
        and width <= _VARLEN_MAX_WIDTH
        and width % _VARLEN_WIDTH_STEP == 0
        and _capability(query.device) >= _VARLEN_CAPABILITY
    )


@cache
def _capability(device: torch.device) -> int:
    """The major compute capability of a GPU."""
    return torch.cuda.get_device_capability(device)[0]


def _attend_each(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scaling: float | None,
    window: int | None,
    *,
    causal: bool,
) -> torch.Tensor:
    """One SDPA call a row: the way on a CPU, where a call costs next to nothing."""
    _, num_heads, num_tokens, _ = query.shape
    is_grouped = key.shape[1] != num_heads
    out = query.new_empty((1, num_tokens, num_heads, value.shape[-1]))
    for start, end in segments.bounds:
        mask = None
        if window is not None and end - start > window:
            mask = _window_mask(segments, end - start, window, causal=causal, device=query.device)
        attended = functional.scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            attn_mask=mask,
            is_causal=causal and mask is None,
            scale=scaling,
            enable_gqa=is_grouped,
        )
        out[:, start:end] = attended.transpose(1, 2)
    return out


def _attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scaling: float | None,
    window: int | None,
    *,
    causal: bool,
) -> torch.Tensor:
    """CUDA only, bfloat16 and float16: all rows in one flash-attention call over variable lengths."""
    left = -1 if window is None else window - 1
    max_length = int(segments.lengths.max())
    attended = _ATTEND_VARLEN(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        segments.cumulative,
        segments.cumulative,
        max_length,
        max_length,
        scale=scaling,
        window_size=(left, 0 if causal else left),
        **(_SAYS_GROUPED if key.shape[1] != query.shape[1] else {}),
    )
    assert isinstance(attended, torch.Tensor)
    return attended[None]


def _window_mask(segments: Segments, length: int, window: int, *, causal: bool, device: torch.device) -> torch.Tensor:
    """Boolean mask [length, length], True where a token may look; made once a pass for all layers."""
    found = segments.window_masks.get((length, window, causal))
    if found is not None:
        return found
    places = torch.arange(length, device=device)
    distance = places[:, None] - places[None, :]
    mask = distance.abs() < window
    if causal:
        mask &= distance >= 0
    segments.window_masks[(length, window, causal)] = mask
    return mask


def _pool(model: torch.nn.Module, first_states: torch.Tensor) -> torch.Tensor:
    """The model's pooler over each row's first state [B, H]; poolers take [B, T, H] and read the first token."""
    activation = getattr(model, "pooler_activation", None)
    if activation is not None:
        return torch.as_tensor(activation(model.pooler(first_states)))  # type: ignore[operator]  # albert: a bare Linear
    return torch.as_tensor(model.pooler(first_states[:, None]))  # type: ignore[operator]  # a module by this name


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """Packed rows need no mask; without this transformers would build one for the whole sequence."""
