"""Packed forward passes: rows end to end in one sequence [1, T], attention kept inside each row, no padding.

The attention is plugged in through transformers' public interfaces; the models' own code stays as it is. Models whose
code ignores that interface are found by `probing.py`. Shapes: `T` tokens of all rows, `N` heads, `D` width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface

from workers.device.rows import Rows
from workers.device.states import States

PACKED_ATTENTION = "ondol_packed"
_UNSUPPORTED = ("position_bias", "softcap", "s_aux", "past_key_values", "cache")
_VARLEN_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(slots=True)
class Segments:
    """The rows of one packed sequence for the attention: `bounds` (start, end) and `cumulative` [B + 1] int32."""

    bounds: list[tuple[int, int]]
    cumulative: torch.Tensor
    max_length: int
    window_masks: dict[tuple[int, int, bool], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of_rows(cls, rows: Rows, device: torch.device) -> Segments:
        """The segments of `rows`; `cumulative` is on `device`."""
        ends = rows.lengths.cumsum().tolist()
        starts = [0, *ends[:-1]]
        cumulative = torch.tensor([0, *ends], dtype=torch.int32, device=device)
        return cls(list(zip(starts, ends, strict=True)), cumulative, int(rows.lengths.max()))


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
        "input_ids": torch.as_tensor(rows.token_ids.astype("int64"), device=device)[None],
        "position_ids": torch.as_tensor(positions, device=device)[None],
        "packed_segments": Segments.of_rows(rows, device),
    }
    if rows.type_ids is not None:
        inputs["token_type_ids"] = torch.as_tensor(rows.type_ids.astype("int64"), device=device)[None]
    if layer != -1:
        inputs["output_hidden_states"] = True
    output = model(**inputs)
    hidden = (output.last_hidden_state if layer == -1 else output.hidden_states[layer])[0]
    pooler = getattr(model, "pooler", None)
    if pooler is None or layer != -1:
        return States(hidden, num_padding=0)
    starts = torch.as_tensor(rows.starts, device=device)
    return States(hidden, num_padding=0, pooled=lambda: _pool(model, hidden[starts]))


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
    if query.is_cuda and query.dtype in _VARLEN_DTYPES:
        return _attend_varlen(query, key, value, packed_segments, scaling, sliding_window, causal=causal), None
    return _attend_each(query, key, value, packed_segments, scaling, sliding_window, causal=causal), None


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
    """One SDPA call a row: the way on a CPU, and on CUDA in float32."""
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
    attended = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        segments.cumulative,
        segments.cumulative,
        segments.max_length,
        segments.max_length,
        scale=scaling,
        window_size=(left, 0 if causal else left),
        enable_gqa=key.shape[1] != query.shape[1],
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
