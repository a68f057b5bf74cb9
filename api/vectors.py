"""Stored embeddings. N inputs, H dimensions, T_i tokens of input i; float32 throughout."""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from api.stored_items import JSON, NDJSON, NPY, PARQUET, StoredItems
from ondol.contract.errors import ModelStoreError
from ondol.sql.records import JsonObject

Array = np.ndarray[Any, np.dtype[np.float32]]

CHUNK_VALUES = 64 * 1024


@dataclass(frozen=True, slots=True)
class StoredVectors(StoredItems):
    """An embedding result: `rows` [N, H], or [sum of T_i, H] with `starts` [N + 1] for one vector a token."""

    FORMATS: ClassVar[tuple[str, ...]] = (JSON, NDJSON, NPY, PARQUET)

    summary: JsonObject
    rows: Array
    starts: list[int] | None

    @classmethod
    def read(cls, summary: JsonObject, data: bytes) -> Self:
        """The result that a record holds; ModelStoreError if data and summary do not fit each other."""
        try:
            found = cls._of(summary, np.frombuffer(data, dtype="<f4"))
        except (KeyError, ValueError) as exc:
            raise ModelStoreError("the stored result does not have the shape that its record states") from exc
        num = len(found.rows) if found.starts is None else len(found.starts) - 1
        if num != len(found):
            raise ModelStoreError("the stored result does not have one vector, or list of them, an input")
        return found

    @classmethod
    def _of(cls, summary: JsonObject, flat: Array) -> Self:
        if summary.get("shape") is not None:
            return cls(summary, flat.reshape(summary["shape"]), None)
        starts = [0, *np.cumsum(summary["lengths"], dtype=np.int64).tolist()]
        # Where every input failed there is nothing to measure, and the other shards' vectors have a width all the same.
        width = len(flat) // starts[-1] if starts[-1] else int(summary.get("dimensions") or 0)
        return cls(summary, flat.reshape(starts[-1], width), starts)

    @property
    def size_bytes(self) -> int:
        """Bytes of all vectors."""
        return self.rows.nbytes

    def vector(self, index: int) -> Array:
        """Vector [H] of an input, or its token vectors [T_i, H]."""
        if self.starts is None:
            row: Array = self.rows[index]
            return row
        return self.rows[self.starts[index] : self.starts[index + 1]]

    def outputs(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Vectors as arrays, or as base64 where the job asked for that."""
        as_base64 = self.summary.get("encoding") == "base64"
        specials = self.summary.get("special_tokens")
        found: list[dict[str, Any]] = []
        for i in range(start, stop):
            output = {"output": to_base64(self.vector(i)) if as_base64 else self.vector(i)}
            found.append(output if specials is None else output | {"special_tokens": specials[i]})
        return found

    def chunk_inputs(self) -> int:
        """Inputs of about 64k numbers."""
        return CHUNK_VALUES * len(self) // max(1, self.rows.size)


def to_base64(vector: Array) -> str:
    """Base64 of the little-endian float32 bytes."""
    return binascii.b2a_base64(np.ascontiguousarray(vector, dtype="<f4").tobytes(), newline=False).decode()
