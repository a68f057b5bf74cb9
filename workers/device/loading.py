"""From a version's folder to a model on the device: explicit dtype, local files, safetensors only, no remote code."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from ondol.contract.errors import ModelRefused, StoreUnavailable
from ondol.contract.model_spec import SPEC_FILE, ModelSpec, parse_model_spec
from workers.device.device_errors import device_errors
from workers.device.device_kinds import torch_dtype
from workers.device.engine import ModelHandle
from workers.device.fast_linear import use_fast_linear
from workers.device.head_probing import settle_layout
from workers.device.head_tasks import HEAD_TASKS, TEXT_TASK, TOKEN_TASK
from workers.device.heads import TaskHead
from workers.device.modules import load_modules
from workers.device.packed import register_packed_attention
from workers.device.probing import probe_states, why_not_packed
from workers.device.rows import Rows
from workers.device.states import States


class ConvertedModel(Protocol):
    """A base model that another engine runs."""

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes beside the torch model."""

    def forward(self, rows: Rows) -> States:
        """Float32 states of the last layer; DeviceError, OutOfDeviceMemory."""


_LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, SafetensorError)
_CLASSES: dict[str, Any] = {
    TEXT_TASK: AutoModelForSequenceClassification,
    TOKEN_TASK: AutoModelForTokenClassification,
}
"""Versions of these tasks are loaded with their head, all others as base models."""


@dataclass(slots=True)
class LoadedModel:
    """A base `model` on the device, in eval mode and run once; `size_bytes` is what all of it takes there.

    `head` is the whole model with its task head, whose base is `model`; None for versions without one.
    """

    handle: ModelHandle
    spec: ModelSpec
    model: nn.Module
    modules: nn.Sequential
    size_bytes: int
    why_padded: str | None
    head: TaskHead | None = None
    converted: ConvertedModel | None = None
    """The same base model in another engine, once there is one; it takes the plain embedding runs."""

    @property
    def is_packed(self) -> bool:
        """Whether rows go through torch end to end, without padding."""
        return self.why_padded is None

    @property
    def wants_packed(self) -> bool:
        """Whether batches should come as they are; padded models want rows of like length."""
        return self.is_packed and self.converted is None


def read_spec(handle: ModelHandle) -> ModelSpec:
    """The version's `ondol.json`; StoreUnavailable if the folder is gone, ModelRefused if the file is."""
    if not handle.path.is_dir():
        # The cache may have dropped the version meanwhile; fetching it again can help.
        raise StoreUnavailable(f"{handle.ref}: no folder {handle.path.name} in the cache")
    try:
        data = (handle.path / SPEC_FILE).read_bytes()
    except FileNotFoundError as exc:
        raise ModelRefused(f"{handle.ref} has no {SPEC_FILE}; import the model again") from exc
    return parse_model_spec(data, ref=handle.ref)


def estimate_bytes(handle: ModelHandle) -> int:
    """Bytes that the version's tensors take in the handle's dtype, from the headers of its weight files."""
    num_numbers = sum(_count_numbers(file, handle.ref) for file in handle.path.rglob("*.safetensors"))
    return num_numbers * torch_dtype(handle.dtype).itemsize


def load_model(handle: ModelHandle, spec: ModelSpec, device: torch.device) -> LoadedModel:
    """Load, probe packing and run once.

    ModelRefused when the folder is not loadable as it stands, OutOfDeviceMemory when the device has no room.
    """
    register_packed_attention()
    with device_errors(f"loading {handle.ref}"):
        whole = load_weights(handle, spec, device)
        modules = load_modules(handle.path, spec.modules, ref=handle.ref, device=device)
    head = _head_of(whole, spec, handle.ref)
    model = whole if head is None else head.base
    own_attention = model.config._attn_implementation  # type: ignore[union-attr]  # a transformers model
    why_padded = why_not_packed(model, spec)
    if head is not None:
        why_padded = settle_layout(head, spec, own_attention=str(own_attention), why_padded=why_padded, ref=handle.ref)
    size_bytes = _tensor_bytes(whole, modules)
    use_fast_linear(model, lambda: probe_states(model, spec, is_packed=why_padded is None))
    return LoadedModel(handle, spec, model, modules, size_bytes, why_padded, head)


def _head_of(model: nn.Module, spec: ModelSpec, ref: str) -> TaskHead | None:
    if spec.task not in HEAD_TASKS:
        return None
    return TaskHead(
        model, task=spec.task, position_offset=spec.position_offset, pad_token_id=spec.pad_token_id, ref=ref
    )


def load_weights(handle: ModelHandle, spec: ModelSpec, device: torch.device) -> nn.Module:
    """The base model, or the model with its head where the version has one; nothing in it is random."""
    try:
        model, info = _CLASSES.get(spec.task, AutoModel).from_pretrained(
            handle.path,
            dtype=torch_dtype(handle.dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except _LOAD_ERRORS as exc:
        raise ModelRefused(f"{handle.ref} cannot be loaded: {type(exc).__name__}: {exc}") from exc
    _check_complete(info, spec, handle.ref)
    assert isinstance(model, nn.Module)
    return model.eval().requires_grad_(requires_grad=False).to(device)


def _check_complete(info: dict[str, Any], spec: ModelSpec, ref: str) -> None:
    """Refuse a model with random weights in it, but for those that the import recorded, and an unused pooler.

    With a head nothing may be missing: heads have poolers of their own, and all of a head is used.
    """
    if spec.task in HEAD_TASKS and info.get("missing_keys"):
        names = ", ".join(sorted(info["missing_keys"])[:5])
        raise ModelRefused(f"the head of {ref} for {spec.task} is not whole: its weights lack {names}; import it again")
    known = set(spec.missing_weights)
    missing = sorted(name for name in info.get("missing_keys", ()) if name not in known and not _is_unused(name, spec))
    if missing:
        raise ModelRefused(f"{ref} lacks weights that it had when it was imported: {', '.join(missing[:5])}")
    if info.get("mismatched_keys"):
        raise ModelRefused(f"{ref} has weights of other shapes than its config.json states")


def _is_unused(name: str, spec: ModelSpec) -> bool:
    return not spec.has_pooler and "pooler" in name.split(".")


def _count_numbers(file: Path, ref: str) -> int:
    """Numbers in a safetensors file, from its header: u64 length, then JSON of name to shape."""
    try:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError) as exc:
        raise ModelRefused(f"{ref}: {file.name} is not a safetensors file") from exc


def _tensor_bytes(*modules: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones once."""
    tensors = {
        tensor.data_ptr(): tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(tensors.values())
