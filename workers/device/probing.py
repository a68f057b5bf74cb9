"""The load-time probe: does this very model give packed rows the states that it gives each row alone?

Some architectures take the packed attention without a word and give other vectors, so nothing is believed: rows of
different lengths, in two orders, with type ids where the model has them, are compared with the model's own way, in
float32, where rounding cannot hide a difference. Shapes: `T` tokens of all rows, `H` hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ondol.contract.errors import DeviceError, DeviceLost, OutOfDeviceMemory
from ondol.contract.model_spec import ModelSpec, PoolingMode
from workers.device.device_errors import device_errors
from workers.device.packed import PACKED_ATTENTION, forward_packed
from workers.device.padded import forward_padded
from workers.device.pooling import pool
from workers.device.rows import Rows
from workers.device.states import States

TOLERANCE = 1e-5
"""Largest difference allowed in float32, in units of the largest state (at least 1): rounding alone stays below."""
MIN_COSINE = 0.999
"""Smallest cosine allowed between a row's packed and lone vectors in the model's own, lower precision."""
_LENGTHS = (7, 1, 23, 8, 3, 12, 11, 7)
"""Alone in their length, alike and equal, so that padding, buckets of like length and plain batches are all tried."""
_MODES = (PoolingMode.CLS, PoolingMode.MEAN)
_SEED = 20


def why_not_packed(model: nn.Module, spec: ModelSpec) -> str | None:
    """None if packed rows are right, else the reason; leaves the model with the attention that is to be used.

    Runs the model, so it is warm afterwards. OutOfDeviceMemory and DeviceLost pass through; any other failure is a
    reason.
    """
    own_attention: str = model.config._attn_implementation  # type: ignore[union-attr, assignment]  # a transformers model
    rows = probe_rows(spec, model)
    with device_errors("running the model alone"), torch.inference_mode():
        alone = _run_alone(model, rows, spec)
    try:
        with device_errors("the packed probe"), torch.inference_mode():
            reason = _compare_in_float32(model, rows, spec, own_attention)
            if reason is None and alone is not None:
                reason = _compare_in_low_precision(model, rows, spec, alone)
    except (OutOfDeviceMemory, DeviceLost):
        raise
    except DeviceError as exc:
        reason = exc.message
    if reason is not None:
        set_attention(model, own_attention)
    return reason


def probe_states(model: nn.Module, spec: ModelSpec, *, is_packed: bool) -> torch.Tensor:
    """Token states [T, H] of the probe's rows together, by the way in which the model is run."""
    rows = probe_rows(spec, model)
    with device_errors("running the model"), torch.inference_mode():
        if is_packed:
            return _forward_together(model, rows, spec).hidden
        return forward_padded(model, Rows.joined(rows), layer=-1, pad_token_id=spec.pad_token_id).hidden


def probe_rows(spec: ModelSpec, model: nn.Module) -> list[Rows]:
    """Single rows of fixed random tokens for the base `model`; one is longer than its sliding window, if it has one."""
    longest = max(1, min(spec.max_length, spec.max_positions - spec.position_offset))
    lengths = [min(length, longest) for length in _LENGTHS]
    if spec.sliding_window is not None:
        lengths.append(min(2 * spec.sliding_window + 9, longest))
    generator = np.random.default_rng(_SEED)
    num_tokens: int = model.get_input_embeddings().num_embeddings  # type: ignore[operator]  # transformers
    rows = []
    for length in lengths:
        ids = generator.integers(0, num_tokens, length, dtype=np.int32)
        ids[ids == spec.pad_token_id] = (spec.pad_token_id + 1) % num_tokens
        types = generator.integers(0, 2, length, dtype=np.int32) if spec.type_vocab_size > 1 else None
        rows.append(Rows(np.asarray([length], dtype=np.int64), ids, types))
    return rows


def _run_alone(model: nn.Module, rows: Sequence[Rows], spec: ModelSpec) -> torch.Tensor | None:
    """Vectors [B, 2H] of each row alone in the model's dtype; None for float32, where the states are compared."""
    is_lowered = next(model.parameters()).dtype != torch.float32
    probed = rows if is_lowered else rows[:1]
    states = [forward_padded(model, row, layer=-1, pad_token_id=spec.pad_token_id) for row in probed]
    if not is_lowered:
        return None
    return torch.cat([pool(state, row, _MODES) for state, row in zip(states, rows, strict=True)])


def _compare_in_float32(model: nn.Module, rows: Sequence[Rows], spec: ModelSpec, own_attention: str) -> str | None:
    with in_float32(model):
        set_attention(model, own_attention)
        alone = [forward_padded(model, row, layer=-1, pad_token_id=spec.pad_token_id) for row in rows]
        set_attention(model, PACKED_ATTENTION)
        if model.config._attn_implementation != PACKED_ATTENTION:  # type: ignore[union-attr]  # a transformers model
            return "the model's code does not take another attention"
        for order in (list(range(len(rows))), list(reversed(range(len(rows))))):
            packed = _forward_together(model, [rows[i] for i in order], spec)
            reason = _difference(packed, [alone[i] for i in order], spec)
            if reason is not None:
                return reason
    return None


def _compare_in_low_precision(
    model: nn.Module, rows: Sequence[Rows], spec: ModelSpec, alone: torch.Tensor
) -> str | None:
    together = pool(_forward_together(model, rows, spec), Rows.joined(rows), _MODES)
    cosine = float(functional.cosine_similarity(together, alone, dim=1).min())
    if not cosine >= MIN_COSINE:  # nor where it is no number
        return f"packed vectors have cosine {cosine:.5f} to those of the rows alone"
    return None


def _forward_together(model: nn.Module, rows: Sequence[Rows], spec: ModelSpec) -> States:
    return forward_packed(
        model, Rows.joined(rows), layer=-1, position_offset=spec.position_offset, pad_token_id=spec.pad_token_id
    )


def _difference(packed: States, alone: Sequence[States], spec: ModelSpec) -> str | None:
    """How packed differs from alone, token by token and by the pooler; None if it does not."""
    expected = torch.cat([state.hidden for state in alone])
    worst = worst_difference(packed.hidden, expected)
    if not worst <= TOLERANCE:
        return f"packed token states differ from those of the rows alone by {worst:.1e}"
    if spec.has_pooler and packed.pooled is not None and alone[0].pooled is not None:
        expected = torch.cat([state.pooled() for state in alone if state.pooled is not None])
        worst = worst_difference(packed.pooled(), expected)
        if not worst <= TOLERANCE:
            return f"packed pooler vectors differ from those of the rows alone by {worst:.1e}"
    return None


def worst_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference in units of the largest expected value, at least 1; not a number if either has one."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))


def set_attention(model: nn.Module, name: str) -> None:
    """Switch this instance alone; others keep theirs."""
    model.set_attn_implementation(name)  # type: ignore[operator]  # a method of every transformers model


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """The same numbers in float32 for a while; buffers such as rotary frequencies are float32 at all times."""
    lowered = [parameter for parameter in model.parameters() if parameter.dtype != torch.float32]
    originals = [parameter.data for parameter in lowered]
    try:
        for parameter in lowered:
            parameter.data = parameter.data.float()
        yield
    finally:
        for parameter, original in zip(lowered, originals, strict=True):
            parameter.data = original
