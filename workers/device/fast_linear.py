"""Faster linear layers on a CPU: weights laid out once for oneDNN, and the exact GELU behind some in the same call.

Torch's own float32 layers use MKL, which on some processors leaves half of the vector width idle; and every small batch
lays the weights out anew. Nothing is believed: what is faster here is measured once a process, and a model whose states
change by more than rounding gets its own layers back. Shapes: `T` tokens of all rows, `H` hidden.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import structlog
import torch
from torch import nn
from torch.nn import functional
from transformers.activations import GELUActivation

from ondol.contract.errors import DeviceError, OutOfDeviceMemory

log = structlog.get_logger(__name__)

TOLERANCE = 1e-5
"""Largest difference allowed in float32, in units of the largest state: the order of additions, nothing more."""
MIN_COSINE = 0.9995
"""Smallest cosine allowed of a token's states in a lower precision: a fused call rounds once where two did twice."""
_FUSED_NAMES = (("dense", "intermediate_act_fn"), ("lin1", "activation"), ("ffn", "activation"))
"""Where architectures keep a linear layer and the activation that is applied to nothing but its output."""
_MIN_GAIN = 0.97
_TRIED_ROWS = (16, 256)
_TRIED_SHAPE = (384, 1536)
_NUM_TRIES = 5

_Place = tuple[nn.Module, str, nn.Module]


class PackedLinear(nn.Module):
    """A linear layer [T, in] to [T, out] whose weight is in oneDNN's own layout; with `has_gelu`, the GELU of that."""

    def __init__(self, linear: nn.Linear, *, has_gelu: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._after: tuple[str, list[float], str] = ("gelu", [], "none") if has_gelu else ("none", [], "")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[…, in] to […, out]."""
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, *self._after)
        return output


def use_fast_linear(model: nn.Module, run: Callable[[], torch.Tensor]) -> bool:
    """Give `model` on a CPU packed linear layers where they are faster and right; whether it has them now.

    `run` gives the model's states [T, H] over some rows; it is called before and after.
    """
    parameter = next(model.parameters())
    if parameter.device.type != "cpu" or not _is_faster(parameter.dtype):
        return False
    with torch.inference_mode():
        before = run()
        places = list(_replace(model, parameter.dtype))
        try:
            reason = _why_wrong(run(), before)
        except OutOfDeviceMemory:
            raise
        except (DeviceError, RuntimeError, AttributeError, TypeError, ValueError) as exc:
            reason = f"{type(exc).__name__}: {exc}"
    if reason is not None:
        for parent, name, original in reversed(places):
            setattr(parent, name, original)
        log.info("linear.not_packed", reason=reason[:200])
    return reason is None and bool(places)


def _replace(model: nn.Module, dtype: torch.dtype) -> Iterator[_Place]:
    """Put packed layers in; yields the parent, the name and the original of all that was replaced.

    A pooler keeps its own: it runs once a row, and the states say nothing about it.
    """
    pooler = getattr(model, "pooler", None)
    kept = set(pooler.modules()) if isinstance(pooler, nn.Module) else set()
    for parent in [module for module in model.modules() if module not in kept]:
        fused = _fused_layer(parent)
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear or child in kept or child.weight.dtype != dtype:
                continue
            is_fused = fused is not None and name == fused[0]
            setattr(parent, name, PackedLinear(child, has_gelu=is_fused))
            yield parent, name, child
            if fused is not None and is_fused:
                activation = getattr(parent, fused[1])
                setattr(parent, fused[1], nn.Identity())
                yield parent, fused[1], activation


def _fused_layer(parent: nn.Module) -> tuple[str, str] | None:
    """The names of a linear layer and the exact GELU behind it, if `parent` has such a pair."""
    for linear, activation in _FUSED_NAMES:
        if type(getattr(parent, linear, None)) is nn.Linear and _is_exact_gelu(getattr(parent, activation, None)):
            return linear, activation
    return None


def _is_exact_gelu(module: Any) -> bool:
    if isinstance(module, nn.GELU):
        return module.approximate == "none"
    return isinstance(module, GELUActivation) and module.act is functional.gelu


def _why_wrong(found: torch.Tensor, expected: torch.Tensor) -> str | None:
    if expected.dtype == torch.float32:
        worst = float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))
        return None if worst <= TOLERANCE else f"states differ by {worst:.1e}"
    cosine = float(functional.cosine_similarity(found.float(), expected.float(), dim=-1).min())
    return None if cosine >= MIN_COSINE else f"states have cosine {cosine:.5f}"


@cache
def _is_faster(dtype: torch.dtype) -> bool:
    """Whether packed layers beat torch's own on this processor by more than noise, over few and over many rows."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch types it not
        return False
    linear = nn.Linear(*_TRIED_SHAPE, dtype=dtype).requires_grad_(requires_grad=False)
    try:
        packed = PackedLinear(linear, has_gelu=False)
        own_s = sum(_best_s(linear, rows, dtype) for rows in _TRIED_ROWS)
        packed_s = sum(_best_s(packed, rows, dtype) for rows in _TRIED_ROWS)
    except (RuntimeError, AttributeError) as exc:  # a torch without these operators, a dtype that they do not know
        log.info("linear.not_packed", reason=f"{type(exc).__name__}: {exc}"[:200])
        return False
    log.info("linear.measured", dtype=str(dtype), own_ms=round(own_s * 1e3, 3), packed_ms=round(packed_s * 1e3, 3))
    return packed_s < own_s * _MIN_GAIN


def _best_s(layer: nn.Module, num_rows: int, dtype: torch.dtype) -> float:
    """Seconds of the fastest of some calls over `num_rows` rows."""
    inputs = torch.zeros(num_rows, _TRIED_SHAPE[0], dtype=dtype)
    times = []
    with torch.inference_mode():
        layer(inputs)
        for _ in range(_NUM_TRIES):
            started = time.perf_counter()
            layer(inputs)
            times.append(time.perf_counter() - started)
    return min(times)
