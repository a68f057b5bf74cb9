"""The environment of the worker's children: what is named here and nothing else, so no address, password or token."""

from __future__ import annotations

import os
from pathlib import Path

from ondol.settings import PREFIX, LogSettings

_ALWAYS = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "VIRTUAL_ENV")
_OF_A_DEVICE = ("HOME", "LD_PRELOAD", "LRU_CACHE_CAPACITY", "TZ", "XDG_CACHE_HOME")
_OF_A_DEVICE_BY_PREFIX = (
    *("CUBLAS_", "CUDA_", "CUDNN_", "NVIDIA_", "PYTORCH_", "TORCH_", "TORCHINDUCTOR_", "TRITON_"),
    *("DNNL_", "GOMP_", "KMP_", "MALLOC_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_", "PYTHON"),
)
"""How a person tunes what a device process computes with: its libraries, its allocator, Python itself."""


def child_environment(*also: str) -> dict[str, str]:
    """What every child needs to start and to find our packages, and the variables named in `also`, where set."""
    kept = {name: os.environ[name] for name in (*_ALWAYS, *also) if name in os.environ}
    return kept | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}


def device_environment() -> dict[str, str]:
    """What a device process needs: also a home for caches, and everything that tunes its libraries."""
    tuning = [name for name in os.environ if name.startswith(_OF_A_DEVICE_BY_PREFIX)]
    return child_environment(*_OF_A_DEVICE, *tuning)


def log_environment(settings: LogSettings) -> dict[str, str]:
    """The variables that make a child log as its worker does."""
    return {f"{PREFIX}LOG_LEVEL": settings.log_level, f"{PREFIX}LOG_FORMAT": settings.log_format}
