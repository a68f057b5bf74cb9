"""Results on their way out: each format as a writer that turns parts into bytes, piece by piece.

Shapes: N inputs, H dimensions. Writers work on any thread, one call at a time, and hold no more than the piece that
they make.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from api.result_parts import ResultPart
from api.stored_items import JSON, NDJSON, NPY, StoredItems, encode
from api.vectors import StoredVectors
from ondol.contract.errors import ModelStoreError, NotAcceptable
from ondol.contract.kinds import JobKind
from ondol.sql.records import JsonObject

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ResultFacts:
    """What is known of a result before its first part.

    `summary` is that of the job's result row; None: the job has not succeeded. `sample` is a part's stored result, if
    any shard has one; `has_ids`: the items bear the caller's ids.
    """

    kind: JobKind
    num_inputs: int
    model_ref: str | None
    summary: JsonObject | None
    sample: StoredItems | None
    has_ids: bool = False


class ResultWriter(ABC):
    """One result in one format. `size_bytes` is known beforehand or None."""

    size_bytes: int | None = None

    def begin(self) -> bytes:
        """What stands before the first part."""
        return b""

    @abstractmethod
    def part(self, part: ResultPart) -> Iterator[bytes]:
        """The part's bytes, piece by piece. ModelStoreError if the part is not what the beginning stated."""

    def end(self) -> bytes:
        """What stands behind the last part."""
        return b""


class JsonWriter(ResultWriter):
    """One JSON document, with what the result is about behind its items."""

    def __init__(self, facts: ResultFacts) -> None:
        self._glue = b""
        self._about: dict[str, Any] = {"model": facts.model_ref, "dtype": None, "engine": None}
        self._num_tokens = 0

    def begin(self) -> bytes:
        """Up to the items."""
        return b'{"object":"list","data":['

    def part(self, part: ResultPart) -> Iterator[bytes]:
        """Items."""
        if part.stored is not None:
            summary = part.stored.summary
            self._about = {name: summary.get(name) for name in self._about}
            self._num_tokens += summary["num_tokens"]
        for items in part.chunks():
            yield self._glue + encode(items)[1:-1]
            self._glue = b","

    def end(self) -> bytes:
        """What the items are of, and the tokens of all."""
        return b"]," + orjson.dumps(self._about | {"usage": {"tokens": self._num_tokens}})[1:]


class NdjsonWriter(ResultWriter):
    """One item a line."""

    def part(self, part: ResultPart) -> Iterator[bytes]:
        """Lines."""
        for items in part.chunks():
            yield b"".join(encode(item) + b"\n" for item in items)


class NpyWriter(ResultWriter):
    """An npy file of float32 [N, H]; NotAcceptable (at once) unless every input has one vector."""

    def __init__(self, facts: ResultFacts) -> None:
        shape = _npy_shape(facts)
        self._width = shape[1]
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
        self._head = head.getvalue()
        self.size_bytes = len(self._head) + 4 * shape[0] * shape[1]

    def begin(self) -> bytes:
        """The header."""
        return self._head

    def part(self, part: ResultPart) -> Iterator[bytes]:
        """Rows."""
        stored = part.stored
        if not isinstance(stored, StoredVectors) or stored.rows.shape != (part.num_inputs, self._width):
            raise ModelStoreError(f"the inputs from {part.first_input} on do not have {self._width} numbers each")
        raw = stored.rows.reshape(-1).view(np.uint8)
        for start in range(0, len(raw), CHUNK_BYTES):
            yield raw[start : start + CHUNK_BYTES].tobytes()


def make_writer(media_type: str, facts: ResultFacts) -> ResultWriter:
    """The writer of a media type on offer; NotAcceptable where this result does not go into it."""
    if media_type == JSON:
        return JsonWriter(facts)
    if media_type == NDJSON:
        return NdjsonWriter()
    if media_type == NPY:
        return NpyWriter(facts)
    try:
        from api.parquet_result import ParquetWriter  # loads pyarrow, which few answers need
    except ImportError as exc:
        raise NotAcceptable("this server writes no Parquet: the package pyarrow is missing", param="Accept") from exc
    return ParquetWriter(facts)


def write_pieces(writer: ResultWriter, parts: Iterable[ResultPart]) -> Iterator[bytes]:
    """A result whose parts are at hand."""
    yield writer.begin()
    for part in parts:
        yield from writer.part(part)
    yield writer.end()


def _npy_shape(facts: ResultFacts) -> tuple[int, int]:
    summary = facts.summary
    if summary is None or summary.get("num_errors") or summary.get("errors"):
        raise NotAcceptable("npy cannot hold item errors; ask for application/json", param="Accept")
    if summary.get("shape") is None:
        raise NotAcceptable("npy holds one vector an input; this result has one a token", param="Accept")
    num_inputs, width = summary["shape"]
    if num_inputs != facts.num_inputs:
        raise ModelStoreError(f"the result has {num_inputs} vectors for {facts.num_inputs} inputs")
    return num_inputs, width
