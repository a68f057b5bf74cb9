"""Stored embeddings and their forms on the wire. N inputs, H dimensions, T_i tokens of input i; float32 throughout."""

from __future__ import annotations

import binascii
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from ondol.contract.errors import ModelStoreError, NotAcceptable
from ondol.sql.records import JsonObject

Array = np.ndarray[Any, np.dtype[np.float32]]

CHUNK_VALUES = 64 * 1024
CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoredVectors:
    """An embedding result: `rows` [N, H], or [sum of T_i, H] with `starts` [N + 1] for one vector a token."""

    summary: JsonObject
    rows: Array
    starts: list[int] | None

    @classmethod
    def read(cls, summary: JsonObject, data: bytes) -> StoredVectors:
        """The result that a record holds; ModelStoreError if data and summary do not fit each other."""
        flat = np.frombuffer(data, dtype="<f4")
        try:
            if summary.get("shape") is not None:
                return cls(summary, flat.reshape(summary["shape"]), None)
            starts = [0, *np.cumsum(summary["lengths"], dtype=np.int64).tolist()]
            width = len(flat) // starts[-1] if starts[-1] else 0
            return cls(summary, flat.reshape(starts[-1], width), starts)
        except (KeyError, ValueError) as exc:
            raise ModelStoreError("the stored result does not have the shape that its record states") from exc

    def __len__(self) -> int:
        return len(self.summary["tokens"])

    def vector(self, index: int) -> Array:
        """Vector [H] of an input, or its token vectors [T_i, H]."""
        if self.starts is None:
            row: Array = self.rows[index]
            return row
        return self.rows[self.starts[index] : self.starts[index + 1]]

    def items(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Result items of the inputs from `start` to before `stop`; arrays are left for the JSON encoder."""
        as_base64 = self.summary.get("encoding") == "base64"
        errors, truncated = self.summary["errors"], set(self.summary["truncated"])
        tokens, specials = self.summary["tokens"], self.summary.get("special_tokens")
        found = []
        for i in range(start, stop):
            item: dict[str, Any] = {"index": i}
            if str(i) in errors:
                item["error"] = errors[str(i)]
            else:
                item["output"] = to_base64(self.vector(i)) if as_base64 else self.vector(i)
                if specials is not None:
                    item["special_tokens"] = specials[i]
            found.append(item | {"tokens": tokens[i], "truncated": i in truncated})
        return found

    def chunks(self) -> Iterator[list[dict[str, Any]]]:
        """All items, a bounded amount at a time."""
        step = max(1, CHUNK_VALUES * len(self) // max(1, self.rows.size))
        for start in range(0, len(self), step):
            yield self.items(start, min(start + step, len(self)))

    def as_json(self) -> Iterator[bytes]:
        """The whole result as pieces of one JSON document."""
        glue = b'{"object":"list","data":['
        for items in self.chunks():
            yield glue + encode(items)[1:-1]
            glue = b","
        if len(self) == 0:
            yield glue
        yield b"]," + orjson.dumps(self._about())[1:]

    def as_ndjson(self) -> Iterator[bytes]:
        """One item a line."""
        for items in self.chunks():
            yield b"".join(encode(item) + b"\n" for item in items)

    def as_npy(self) -> Iterator[bytes]:
        """An npy file of float32 [N, H]; NotAcceptable (at once) unless every input has one vector."""
        if self.starts is not None:
            raise NotAcceptable("npy holds one vector an input; this result has one a token", param="Accept")
        if self.summary["errors"]:
            raise NotAcceptable("npy cannot hold item errors; ask for application/json", param="Accept")
        return self._npy_pieces()

    def _npy_pieces(self) -> Iterator[bytes]:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            head, {"descr": "<f4", "fortran_order": False, "shape": tuple(self.rows.shape)}
        )
        yield head.getvalue()
        raw = self.rows.reshape(-1).view(np.uint8)
        for start in range(0, len(raw), CHUNK_BYTES):
            yield raw[start : start + CHUNK_BYTES].tobytes()

    def _about(self) -> dict[str, Any]:
        names = ("model", "dtype", "engine")
        return {name: self.summary.get(name) for name in names} | {"usage": {"tokens": self.summary["num_tokens"]}}


def to_base64(vector: Array) -> str:
    """Base64 of the little-endian float32 bytes."""
    return binascii.b2a_base64(np.ascontiguousarray(vector, dtype="<f4").tobytes(), newline=False).decode()


def encode(value: Any) -> bytes:
    """JSON, in which float32 arrays become lists of the shortest numbers that read back as the same float32."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
