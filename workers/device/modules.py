"""Sentence-transformers modules behind the pooling (Dense, LayerNorm, Normalize), read from safetensors without it.

They compute in float32 whatever the model's dtype: they are small, and what they give is what leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from ondol.contract.errors import ModelRefused
from ondol.contract.model_spec import ModuleSpec

WEIGHTS_FILE = "model.safetensors"

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "leaky_relu": nn.LeakyReLU,
    "hardtanh": nn.Hardtanh,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "logsigmoid": nn.LogSigmoid,
    "tanhshrink": nn.Tanhshrink,
}
"""Activations of a Dense module by name, each with the library's default parameters."""


class _Normalize(nn.Module):
    """Vectors [B, H] to unit length."""

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return functional.normalize(vectors, p=2, dim=-1)


def load_modules(folder: Path, specs: tuple[ModuleSpec, ...], *, ref: str, device: torch.device) -> nn.Sequential:
    """The modules of a version in order, on `device`; ModelRefused when a file is missing, damaged or misshaped."""
    return nn.Sequential(*(_load_module(folder, spec, ref) for spec in specs)).float().eval().to(device)


def _load_module(folder: Path, spec: ModuleSpec, ref: str) -> nn.Module:
    if spec.type == "normalize":
        return _Normalize()
    if spec.type == "dense":
        if spec.activation not in ACTIVATIONS:
            raise ModelRefused(f"{ref}: unknown activation {spec.activation!r} in {spec.path}")
        linear = nn.Linear(spec.in_features, spec.out_features, bias=spec.has_bias)
        _fill(linear, folder / spec.path / WEIGHTS_FILE, "linear.", ref)
        return nn.Sequential(linear, ACTIVATIONS[spec.activation]())
    if spec.type == "layer_norm":
        norm = nn.LayerNorm(spec.in_features or spec.out_features)
        _fill(norm, folder / spec.path / WEIGHTS_FILE, "norm.", ref)
        return norm
    raise ModelRefused(f"{ref}: unknown module {spec.type!r}; known are dense, layer_norm and normalize")


def _fill(module: nn.Module, file: Path, prefix: str, ref: str) -> None:
    """Strictly fill `module` with the tensors of `file` whose names begin with `prefix`."""
    try:
        weights = {name.removeprefix(prefix): tensor.float() for name, tensor in load_file(file).items()}
        module.load_state_dict(weights, strict=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as exc:
        raise ModelRefused(f"{ref}: {file.parent.name}/{file.name} cannot be read: {exc}") from exc
