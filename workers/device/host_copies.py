"""Copies between host and device, through pinned memory where there is a GPU: it reads and writes that by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from workers.device.engine import FloatArray


def to_device(numbers: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """The numbers on `device`, in their dtype. A GPU copies by itself; a CPU tensor may share the memory."""
    tensor = torch.as_tensor(numbers if numbers.flags.writeable else numbers.copy())
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def to_host(values: torch.Tensor) -> FloatArray:
    """Float32 values as an array; waits for the device."""
    if values.device.type == "cpu":
        return np.asarray(values.numpy())
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return np.asarray(host.copy_(values).numpy())
