"""Torch's errors in our words: memory that ran out, a device that is lost, a model that could not run."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ondol.contract.errors import DeviceError, DeviceLost, OutOfDeviceMemory

_CPU_MEMORY_WORDS = ("not enough memory", "DefaultCPUAllocator", "can't allocate memory")
_LOST_WORDS = ("CUDA error", "device-side assert", "CUBLAS_STATUS_EXECUTION_FAILED")


@contextmanager
def device_errors(what: str) -> Iterator[None]:
    """Translate what torch raises inside: OutOfDeviceMemory (halve), DeviceLost (the process must end), DeviceError."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as exc:
        raise OutOfDeviceMemory(f"{what}: out of memory") from exc
    except RuntimeError as exc:
        raise _translate(what, exc) from exc
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as exc:
        raise DeviceError(f"{what}: {type(exc).__name__}: {exc}") from exc


def release_model_memory(device: torch.device) -> None:
    """Give back what models that were let go have held; slow (it looks for cycles), so only after an eviction."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def let_go_of_locals(error: BaseException) -> None:
    """Drop what the functions held that `error` came through: a model that failed to load would live as long as it."""
    chain: BaseException | None = error
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__


def release_batch_memory(device: torch.device) -> None:
    """Give back what a batch that ran out of memory has held; on a CPU that is gone with its last reference."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _translate(what: str, exc: RuntimeError) -> DeviceError:
    text = str(exc)
    if any(word in text for word in _CPU_MEMORY_WORDS):
        return OutOfDeviceMemory(f"{what}: out of memory")
    if isinstance(exc, torch.AcceleratorError) or any(word in text for word in _LOST_WORDS):
        # A CUDA context does not recover from such an error: every later call would fail, too.
        return DeviceLost(f"{what}: {text}")
    return DeviceError(f"{what}: {text}")
