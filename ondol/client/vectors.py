"""Vectors as they travel: base64 of little-endian float32, lists of floats, npy files. N inputs, H hidden."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondol.client.errors import BadAnswer
from ondol.client.flow import Json
from ondol.client.records import JobResult
from ondol.contract.errors import InvalidPayload

Vectors = NDArray[np.float32]

_FAILED_ROW = np.nan


def vectors_from_npy(content: bytes) -> Vectors:
    """The float32 array in an npy file; BadAnswer if it is none. Never unpickles."""
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as exc:
        raise BadAnswer(f"the server's answer is not an npy file: {exc}") from exc
    return np.asarray(array, dtype=np.float32)


def vectors_from_call(body: Json, *, num_inputs: int) -> Vectors:
    """Float32 [N, H] from the answer of `/v1/embeddings`; BadAnswer unless it has one vector an input."""
    data = body.get("data")
    if not isinstance(data, list) or len(data) != num_inputs:
        raise BadAnswer(f"the server's answer does not hold {num_inputs} vectors: {str(body)[:120]}")
    return np.stack([decode_vector(item["embedding"]) for item in sorted(data, key=_index)])


def vectors_from_result(result: JobResult) -> Vectors:
    """Float32 [N, H] from a result with item errors; NaN in the rows that failed, [N, 0] if all did.

    InvalidPayload if the job gave labels or entities, or has no inputs, as an import.
    """
    if "data" not in result.raw:
        raise InvalidPayload("the job's result holds no vectors; take it as JSON")
    if any(isinstance(value, Mapping) for item in result.items for value in item.output or ()):
        raise InvalidPayload("the job's result holds labels or entities, not vectors; take it as JSON")
    decoded = {item.index: decode_vector(item.output) for item in result.items if item.error is None}
    width = len(next(iter(decoded.values()))) if decoded else 0
    vectors = np.full((len(result.items), width), _FAILED_ROW, dtype=np.float32)
    for index, vector in decoded.items():
        vectors[index] = vector
    return vectors


def decode_vector(value: str | Sequence[float]) -> Vectors:
    """Float32 [H] from base64 or a list of numbers; BadAnswer if it is neither."""
    try:
        if isinstance(value, str):
            return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4").astype(np.float32)
        return np.asarray(value, dtype=np.float32)
    except (binascii.Error, ValueError, TypeError) as exc:
        raise BadAnswer(f"the server sent a vector that cannot be read: {str(value)[:80]}") from exc


def join_vectors(parts: Sequence[Vectors]) -> Vectors:
    """The parts below each other; a part in which every input failed ([N, 0]) gets the width of the others."""
    width = max(part.shape[-1] for part in parts)
    return np.concatenate([part if part.shape[-1] == width else _all_failed(len(part), width) for part in parts])


def _all_failed(num_rows: int, width: int) -> Vectors:
    return np.full((num_rows, width), _FAILED_ROW, dtype=np.float32)


def _index(item: Mapping[str, Any]) -> int:
    return int(item["index"])
