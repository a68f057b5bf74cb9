"""From logits to scores, with the Hugging Face pipelines' own arithmetic, in float32. `C` classes."""

from __future__ import annotations

import numpy as np

from ondol.contract.errors import DeviceError
from workers.rows import FloatArray


def softmax(logits: FloatArray) -> FloatArray:
    """Scores [..., C] that sum to 1."""
    shifted = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float32)


def sigmoid(logits: FloatArray) -> FloatArray:
    """Scores [..., C], each between 0 and 1 by itself."""
    with np.errstate(over="ignore"):  # a logit far below zero: the score is 0
        return np.asarray(1.0 / (1.0 + np.exp(-logits)), dtype=np.float32)


def not_finite(ref: str) -> DeviceError:
    """The error of an input for which the model answered NaN or infinity."""
    return DeviceError(f"{ref} answered numbers that are not finite; run it with dtype float32, or check its weights")


def check_width(width: int, num_labels: int, ref: str) -> None:
    """Return if the model answers one number a label; DeviceError if not."""
    if width != num_labels:
        raise DeviceError(f"{ref} answered {width} numbers for its {num_labels} labels; import the model again")
