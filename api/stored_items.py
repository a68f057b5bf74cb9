"""Stored results of inputs: one item an input, in input order. How they leave is for `api/result_writers.py`."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import orjson

from ondol.sql.records import JsonObject

JSON, NDJSON = "application/json", "application/x-ndjson"
NPY, PARQUET = "application/x-npy", "application/vnd.apache.parquet"
_INPUT = re.compile(r"input\[(\d+)\]")


class StoredItems(ABC):
    """A result with one item an input; subclasses say what stands in an item that has not failed."""

    __slots__ = ()

    FORMATS: ClassVar[tuple[str, ...]] = (JSON, NDJSON, PARQUET)
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

    def items(self, start: int, stop: int, *, first_input: int = 0) -> list[dict[str, Any]]:
        """Result items of the inputs from `start` to before `stop`; input 0 is the job's input `first_input`."""
        errors, truncated, tokens = self.summary["errors"], set(self.summary["truncated"]), self.summary["tokens"]
        ids = self.summary.get("ids")
        found = []
        for i, output in enumerate(self.outputs(start, stop), start):
            shown = {"error": placed(errors[str(i)], first_input)} if str(i) in errors else output
            name = {} if ids is None else {"id": ids[i]}
            facts = {"tokens": tokens[i], "truncated": i in truncated}
            found.append({"index": first_input + i, **name, **shown, **facts})
        return found


def placed(error: JsonObject, first_input: int) -> JsonObject:
    """The error with a `param` that counts inputs from the beginning of the job, not from `first_input` on."""
    found = _INPUT.match(error.get("param") or "")
    if found is None or not first_input:
        return error
    return {**error, "param": f"input[{int(found[1]) + first_input}]{error['param'][found.end() :]}"}


def encode(value: Any) -> bytes:
    """JSON, in which float32 numbers and arrays become the shortest numbers that read back as the same float32."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
