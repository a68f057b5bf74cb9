"""Stored entities of a token classification and their forms on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import orjson

from api.stored_items import StoredItems
from ondol.contract.errors import ModelStoreError
from ondol.sql.records import JsonObject

CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class StoredEntities(StoredItems):
    """A token classification's result: one list of entities an input, read from `num_bytes` of JSON."""

    summary: JsonObject
    entities: list[list[dict[str, Any]]]
    num_bytes: int

    @classmethod
    def read(cls, summary: JsonObject, data: bytes) -> Self:
        """The result that a record holds; ModelStoreError if data and summary do not fit each other."""
        try:
            entities = orjson.loads(data)
        except orjson.JSONDecodeError as exc:
            raise ModelStoreError("the stored entities are not JSON") from exc
        if not isinstance(entities, list) or len(entities) != len(summary["tokens"]):
            raise ModelStoreError("the stored entities are not one list an input, as their record states")
        return cls(summary, entities, len(data))

    @property
    def size_bytes(self) -> int:
        """Bytes of the stored JSON."""
        return self.num_bytes

    def outputs(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Entities as they are stored."""
        return [{"output": found} for found in self.entities[start:stop]]

    def chunk_inputs(self) -> int:
        """Inputs of about 256 KiB, were they all alike."""
        return CHUNK_BYTES * len(self) // max(1, self.num_bytes)
