"""Strict reading of a safetensors file's header, without loading a tensor: what is no safetensors file is refused."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ondol.contract.errors import ModelRefused

MAX_HEADER_BYTES = 100_000_000
_DTYPE_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64"), 64),
}
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as the header states it; `dtype` is the format's name (`F32`)."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path, name: str) -> dict[str, TensorInfo]:
    """Tensors of the file by name; ModelRefused (under `name`) if header, shapes, offsets or size do not agree."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if prefix.startswith(_PICKLE_STARTS):
            raise ModelRefused(f"{name} is a pickle renamed to .safetensors; save it with safetensors")
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, size_bytes - 8):
            raise _refused(name, f"states a header of {header_bytes} bytes in a file of {size_bytes}")
        header = _parse(file.read(header_bytes), name)
    header.pop("__metadata__", None)
    tensors = {tensor: _tensor(name, tensor, entry) for tensor, entry in header.items()}
    _check_layout(name, tensors, size_bytes - 8 - header_bytes)
    return tensors


def _refused(name: str, why: str) -> ModelRefused:
    return ModelRefused(f"{name} is not a whole safetensors file: it {why}; copy or save it again")


def _parse(data: bytes, name: str) -> dict[str, Any]:
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise _refused(name, "has a header that is not JSON") from exc
    if not isinstance(header, dict):
        raise _refused(name, "has a header that is not a JSON object")
    return header


def _tensor(name: str, tensor: str, entry: object) -> TensorInfo:
    if not isinstance(entry, dict):
        raise _refused(name, f"describes tensor {tensor!r} wrongly")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if dtype not in _DTYPE_BITS:
        raise _refused(name, f"has tensor {tensor!r} of dtype {dtype!r}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise _refused(name, f"describes tensor {tensor!r} wrongly")
    num_bits = _DTYPE_BITS[dtype]
    for length in shape:
        num_bits *= length
    if offsets[1] - offsets[0] != num_bits // 8:
        raise _refused(name, f"gives tensor {tensor!r} {offsets[1] - offsets[0]} bytes where {num_bits // 8} belong")
    return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_layout(name: str, tensors: dict[str, TensorInfo], data_bytes: int) -> None:
    end = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != end:
            raise _refused(name, f"has tensors that overlap or leave a gap at byte {end}")
        end = tensor.end
    if end != data_bytes:
        raise _refused(name, f"has {data_bytes} bytes of tensors where its header states {end}")
