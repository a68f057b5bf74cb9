"""A base model run by OpenVINO on a CPU: rows of like length side by side, padded, with the threads of this process.

Shapes: `B` rows, `L` their padded length, `T` tokens of all rows, `H` hidden.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ondol.contract.errors import DeviceError, OutOfDeviceMemory
from workers.device.heads import buckets, token_places
from workers.device.rows import Rows
from workers.device.states import States

HINTS = {"float32": "f32", "bfloat16": "bf16"}
"""Dtypes that can be asked of OpenVINO on a CPU, and what it calls them."""
_KEPT_OPERATIONS = 1_000
"""Operations that stay compiled for sizes of past batches. OpenVINO's own 5,000 take more memory and no less time."""
_MEMORY_WORDS = ("bad_alloc", "not enough memory", "out of memory")


class OpenVinoModel:
    """Gives the states of the last layer; one thread at a time. The result of a pass is copied out of its buffers."""

    def __init__(self, xml: Path, *, dtype: str, threads: int, pad_token_id: int) -> None:
        """Compiles the model; DeviceError if OpenVINO cannot."""
        import openvino

        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": HINTS[dtype],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "CPU_RUNTIME_CACHE_CAPACITY": _KEPT_OPERATIONS,
            "ENABLE_CPU_PINNING": False,  # the process is pinned; a second opinion could put threads on one core
        }
        try:
            compiled = openvino.Core().compile_model(str(xml), "CPU", settings)
            self._request = compiled.create_infer_request()
        except RuntimeError as exc:
            raise DeviceError(f"OpenVINO cannot compile {xml.parent.name}: {exc}") from exc
        self._pad_token_id = pad_token_id
        itemsize = torch.float32.itemsize if dtype == "float32" else torch.bfloat16.itemsize
        self._size_bytes = xml.with_suffix(".bin").stat().st_size * itemsize // torch.float32.itemsize

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights in the dtype they are run in."""
        return self._size_bytes

    def forward(self, rows: Rows) -> States:
        """Float32 states [T, H] of all rows, in as many passes as keep padding small."""
        hidden: torch.Tensor | None = None
        num_padding = 0
        for bucket in buckets(rows.lengths):
            found, padded = self._run(rows, bucket)
            if len(bucket) == len(rows.lengths) and (np.diff(bucket) == 1).all():
                return States(found, padded)
            if hidden is None:
                hidden = found.new_empty((len(rows.token_ids), found.shape[1]))
            hidden[torch.as_tensor(token_places(rows, bucket))] = found
            num_padding += padded
        assert hidden is not None, "a batch has at least one row"
        return States(hidden, num_padding)

    def _run(self, rows: Rows, bucket: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[torch.Tensor, int]:
        """States [t, H] of the bucket's tokens, row after row, and the padding."""
        lengths = rows.lengths[bucket]
        is_real = np.arange(int(lengths.max())) < lengths[:, None]
        ids = np.full(is_real.shape, self._pad_token_id, dtype=np.int64)
        ids[is_real] = rows.token_ids[token_places(rows, bucket)]
        try:
            output = self._request.infer({0: ids, 1: is_real.astype(np.int64)}, share_inputs=True, share_outputs=True)
        except (RuntimeError, MemoryError) as exc:
            if isinstance(exc, MemoryError) or any(word in str(exc) for word in _MEMORY_WORDS):
                raise OutOfDeviceMemory("OpenVINO: out of memory") from exc
            raise DeviceError(f"OpenVINO: {exc}") from exc
        states = output[0]
        return torch.from_numpy(states[is_real]), int(is_real.size - lengths.sum())  # the index copies
