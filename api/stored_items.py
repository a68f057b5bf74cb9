"""Stored results of inputs and their forms on the wire: one item an input, in input order, piece by piece."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import orjson

from ondol.sql.records import JsonObject

JSON, NDJSON = "application/json", "application/x-ndjson"


class StoredItems(ABC):
    """A result with one item an input; subclasses say what stands in an item that has not failed."""

    __slots__ = ()

    FORMATS: ClassVar[tuple[str, ...]] = (JSON, NDJSON)
    """Media types on offer, the preferred one first."""

    summary: JsonObject

    def __len__(self) -> int:
        return len(self.summary["tokens"])

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Bytes of the stored data."""

    @classmethod
    @abstractmethod
    def read(cls, summary: JsonObject, data: bytes) -> Self:
        """The result that a record holds; ModelStoreError if data and summary do not fit each other."""

    @abstractmethod
    def chunk_inputs(self) -> int:
        """How many inputs make a piece of bounded size."""

    @abstractmethod
    def outputs(self, start: int, stop: int) -> list[dict[str, Any]]:
        """By input from `start` to before `stop`: `output` and what belongs to it. Arrays are left to the encoder."""

    def pieces(self, media_type: str) -> Iterator[bytes]:
        """The whole result in one of the `FORMATS`, piece by piece."""
        return self.as_json() if media_type == JSON else self.as_ndjson()

    def items(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Result items of the inputs from `start` to before `stop`."""
        errors, truncated, tokens = self.summary["errors"], set(self.summary["truncated"]), self.summary["tokens"]
        found = []
        for i, output in enumerate(self.outputs(start, stop), start):
            shown = {"error": errors[str(i)]} if str(i) in errors else output
            found.append({"index": i, **shown, "tokens": tokens[i], "truncated": i in truncated})
        return found

    def chunks(self) -> Iterator[list[dict[str, Any]]]:
        """All items, a bounded amount at a time."""
        step = max(1, self.chunk_inputs())
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

    def _about(self) -> dict[str, Any]:
        names = ("model", "dtype", "engine")
        return {name: self.summary.get(name) for name in names} | {"usage": {"tokens": self.summary["num_tokens"]}}


def encode(value: Any) -> bytes:
    """JSON, in which float32 numbers and arrays become the shortest numbers that read back as the same float32."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
