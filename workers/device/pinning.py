"""Pinning: the process keeps to its cores, threads and GPU. It runs before torch is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

from workers.device.arguments import DeviceArguments

_SPIN_COUNT = "1000"
"""How long an OpenMP thread spins before it sleeps. The library's default is 300 times that: beside one busy process a
batch took 1.4 times as long with it, on a quiet machine the two are alike (`docs/performance.md`)."""
SMALL_CACHES = {"LRU_CACHE_CAPACITY": "1", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
"""How many operations torch (through ideep) and oneDNN below it keep compiled for the sizes of past batches on a CPU.

Each takes about half a MB, the default is 1,024 in either, and packed batches have ever new sizes. 128 are those of the
usual calls to a model or two; what is compiled anew costs a batch a millisecond.
"""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def pin(arguments: DeviceArguments) -> None:
    """Set CPU affinity and the environment that torch's libraries read when they are loaded.

    RuntimeError if torch is there already. OSError if a core does not exist or is not allowed.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch was imported before pinning; its thread pools ignore the limits now")
    os.sched_setaffinity(0, arguments.cores)
    set_pinned_environment(arguments, os.environ)


def set_pinned_environment(arguments: DeviceArguments, environ: MutableMapping[str, str]) -> None:
    """Write thread counts, sizes of caches, the visible GPU and the offline switches into `environ`."""
    for name in _THREAD_VARIABLES:
        environ[name] = str(arguments.threads)
    for name, value in {"GOMP_SPINCOUNT": _SPIN_COUNT, **SMALL_CACHES}.items():
        environ.setdefault(name, value)
    environ["TOKENIZERS_PARALLELISM"] = "false"
    environ["HF_HUB_OFFLINE"] = "1"
    environ["TRANSFORMERS_VERBOSITY"] = "error"
    environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    environ["CUDA_VISIBLE_DEVICES"] = _visible_gpu(arguments.cuda_index, environ.get("CUDA_VISIBLE_DEVICES"))


def _visible_gpu(index: int | None, already_visible: str | None) -> str:
    """The one GPU to show; `index` counts within the list that a container or scheduler gave us, if it did."""
    if index is None:
        return ""
    if not already_visible:
        return str(index)
    return already_visible.split(",")[index].strip()
