"""Weights: found, refused if they are pickles, converted if asked for, and scanned for numbers that are none."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models_store.safetensors_header import TensorInfo, read_header
from ondol.contract.errors import ModelRefused
from workers.importing.source import SourceFolder

SAFE_FILE = "model.safetensors"
SAFE_INDEX = "model.safetensors.index.json"
_BIN_FILE = "pytorch_model.bin"
_BIN_INDEX = "pytorch_model.bin.index.json"
_OTHER_FRAMEWORKS = ("tf_model.h5", "flax_model.msgpack", "model.ckpt.index", "tf_model.h5.index.json")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_SAVE_AGAIN = "load it with transformers and save it with save_pretrained"
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass(frozen=True, slots=True)
class StagedWeights:
    """What was staged: tensors by name, and the dtype of most of their bytes."""

    tensors: dict[str, TensorInfo]
    dtype: str


def stage_weights(source: SourceFolder, target: Path, *, convert_bin: bool) -> StagedWeights:
    """Copy the weights of `source` into `target` as safetensors, or convert them; ModelRefused says what to do."""
    index, names = _find(source)
    if names[0].endswith(".bin"):
        if not convert_bin:
            raise ModelRefused(
                f"{source.shown(names[0])} is a pickle, which can run code when it is read; import again with "
                f"--convert-bin if you trust where it came from, or {_SAVE_AGAIN}"
            )
        staged = [_convert(source, name, target) for name in names]
    else:
        staged = [_copy(source, name, target) for name in names]
    if index is not None:
        _write_index(target, staged)
    tensors: dict[str, TensorInfo] = {}
    for path in staged:
        tensors |= _check(path, source.shown(path.name))
    return StagedWeights(tensors, _main_dtype(tensors))


def _find(source: SourceFolder) -> tuple[str | None, list[str]]:
    """The index file, if the weights are in shards, and the names of the files."""
    if source.has(SAFE_FILE):
        return None, [SAFE_FILE]
    for index, suffix in ((SAFE_INDEX, ".safetensors"), (_BIN_INDEX, ".bin")):
        if index == _BIN_INDEX and source.has(_BIN_FILE):
            return None, [_BIN_FILE]
        if source.has(index):
            return index, _shards(source, index, suffix)
    raise _no_weights(source)


def _shards(source: SourceFolder, index: str, suffix: str) -> list[str]:
    weight_map = source.read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelRefused(f"{source.shown(index)} has no weight_map; {_SAVE_AGAIN}")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if not name.endswith(suffix):
            raise ModelRefused(f"{source.shown(index)} names {name[:120]!r}, which is no {suffix} file")
        source.file(name)
    return names


def _no_weights(source: SourceFolder) -> ModelRefused:
    names = source.names()
    for name in names:
        if name in _OTHER_FRAMEWORKS:
            return ModelRefused(
                f"{source.shown(name)} holds weights of TensorFlow or Flax; load it with transformers 4 "
                "(from_tf=True or from_flax=True), save it with save_pretrained and import that folder"
            )
        if name.startswith("adapter_model"):
            return ModelRefused(
                f"{source.shown(name)} is an adapter without its base model; merge it with peft "
                "(merge_and_unload), save the model with save_pretrained and import that folder"
            )
    for name in names:
        if name.endswith(_PICKLE_SUFFIXES):
            return ModelRefused(f"{source.shown(name)} is a pickle of another program; {_SAVE_AGAIN}")
        if name.endswith((".onnx", ".gguf")) or name == "onnx":
            return ModelRefused(f"{source.shown(name)} cannot be imported; name the folder of the PyTorch weights")
    return ModelRefused(f"{source.shown(SAFE_FILE)} is missing; {_SAVE_AGAIN}")


def _copy(source: SourceFolder, name: str, target: Path) -> Path:
    path = source.file(name)
    read_header(path, source.shown(name))
    return Path(shutil.copyfile(path, target / name))


def _convert(source: SourceFolder, name: str, target: Path) -> Path:
    path = source.file(name)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as exc:  # torch's restricted reader fails in any way on bytes made up for it
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise ModelRefused(f"{source.shown(name)} is not a file of tensors only: {reason[:300]}") from exc
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelRefused(f"{source.shown(name)} holds more than named tensors; {_SAVE_AGAIN}")
    # Tied weights share memory, which safetensors refuses: each name gets its own copy.
    tensors = {str(key): value.detach().contiguous().clone() for key, value in state.items()}
    staged = target / name.replace("pytorch_model", "model").replace(".bin", ".safetensors")
    save_file(tensors, staged, metadata={"format": "pt"})
    return staged


def _write_index(target: Path, staged: list[Path]) -> None:
    weight_map = {tensor: path.name for path in staged for tensor in read_header(path, path.name)}
    size = sum(path.stat().st_size for path in staged)
    content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (target / SAFE_INDEX).write_text(json.dumps(content, indent=1))


def _check(path: Path, shown: str) -> dict[str, TensorInfo]:
    tensors = read_header(path, shown)
    try:
        with safe_open(path, framework="pt") as file:
            for name in tensors:
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and not bool(torch.isfinite(_wide_enough(tensor)).all()):
                    raise ModelRefused(f"{shown} has NaN or infinite numbers in {name}; the training run diverged")
    except SafetensorError as exc:
        raise ModelRefused(f"{shown} is not a whole safetensors file: {exc}") from exc
    return tensors


def _wide_enough(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.itemsize == 1 else tensor


def _main_dtype(tensors: dict[str, TensorInfo]) -> str:
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.end - tensor.start
    dtype = sizes.most_common(1)[0][0] if sizes else "F32"
    if dtype not in _DTYPES:
        raise ModelRefused(f"the weights are {dtype}; import float32, float16 or bfloat16 weights")
    return _DTYPES[dtype]
