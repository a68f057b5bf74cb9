"""Vectors as they travel: base64 of little-endian float32, lists of floats. N inputs, H hidden."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondol.client.errors import BadAnswer
from ondol.client.flow import Json

Vectors = NDArray[np.float32]

FAILED_ROW = np.nan
"""What stands in the rows of inputs that failed."""


def vectors_from_call(body: Json, *, num_inputs: int) -> Vectors:
    """Float32 [N, H] from the answer of `/v1/embeddings`; BadAnswer unless it has one vector an input."""
    data = body.get("data")
    if not isinstance(data, list) or len(data) != num_inputs:
        raise BadAnswer(f"the server's answer does not hold {num_inputs} vectors: {str(body)[:120]}")
    return np.stack([decode_vector(item["embedding"]) for item in sorted(data, key=_index)])


def decode_vector(value: str | Sequence[float]) -> Vectors:
    """Float32 [H] from base64 or a list of numbers; BadAnswer if it is neither."""
    try:
        if isinstance(value, str):
            return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4").astype(np.float32)
        return np.asarray(value, dtype=np.float32)
    except (binascii.Error, ValueError, TypeError) as exc:
        raise BadAnswer(f"the server sent a vector that cannot be read: {str(value)[:80]}") from exc


def _index(item: Mapping[str, Any]) -> int:
    return int(item["index"])
