"""Device kinds (`cpu`, `cpu-bf16`, `cuda-sm90`): what a dtype was found good on, and which dtypes are native there."""

from __future__ import annotations

from pathlib import Path

import torch

from ondol.contract.errors import InvalidPayload

_CPUINFO = Path("/proc/cpuinfo")
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_BF16_CAPABILITY = 8
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_kind(device: torch.device) -> str:
    """The kind of `device`; equal kinds give equal answers to which dtype is faithful and fast."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda-sm{major}{minor}"
    return "cpu-bf16" if cpu_has_bf16(_CPUINFO.read_text(encoding="utf-8")) else "cpu"


def native_dtypes(device: torch.device) -> tuple[str, ...]:
    """Dtypes that the device computes in by itself, float32 first."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device)[0] >= _BF16_CAPABILITY
        return ("float32", "bfloat16", "float16") if has_bf16 else ("float32", "float16")
    return ("float32", "bfloat16") if device_kind(device) == "cpu-bf16" else ("float32",)


def avoid_slow_kernels(device: torch.device) -> None:
    """Leave cuDNN's attention out on a GPU, for this whole process: it compiles anew for each shape of a batch.

    That takes a tenth of a second, and no two batches have the same shape.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def cpu_has_bf16(cpuinfo: str) -> bool:
    """Whether the flags in the text of `/proc/cpuinfo` name bfloat16 instructions."""
    for line in cpuinfo.splitlines():
        if line.startswith("flags"):
            return not _BF16_FLAGS.isdisjoint(line.split())
    return False


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of that name; InvalidPayload for any other than float32, bfloat16 and float16."""
    if name not in _DTYPES:
        raise InvalidPayload(
            f"{name!r} is not a dtype to load a model in; use {', '.join(_DTYPES)}", param="model.dtype"
        )
    return _DTYPES[name]
