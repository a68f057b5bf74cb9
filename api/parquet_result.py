"""Results as Parquet: one row an input, one row group a shard. Imported only where Parquet is asked for.

Columns: `index`, `id` (as text, where the caller named ids), what the kind of job gives, `error` (null, or code,
message and param), `tokens`, `truncated`. What an input with an error would have is null.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from api.entities import StoredEntities
from api.label_scores import StoredScores
from api.result_parts import ResultPart
from api.result_writers import ResultFacts, ResultWriter
from api.stored_items import StoredItems, placed
from api.vectors import StoredVectors
from ondol.contract.errors import ModelStoreError
from ondol.contract.kinds import JobKind

GROUP_INPUTS = 4_096
"""Inputs of one row group where a part has more: the result of a whole job."""

_ERROR = pa.struct([("code", pa.string()), ("message", pa.string()), ("param", pa.string())])
_ENTITY = {"score": pa.float32(), "word": pa.string(), "start": pa.int64(), "end": pa.int64()}
_PLAIN = ["index", "id", "tokens", "truncated"]
"""Columns for which statistics are worth their bytes."""


class ParquetWriter(ResultWriter):
    """One Parquet file, sent row group by row group."""

    def __init__(self, facts: ResultFacts) -> None:
        self._columns = _COLUMNS[facts.kind](facts.sample)
        names = [("index", pa.int64())] + ([("id", pa.string())] if facts.has_ids else [])
        fields = [*names, *self._columns.fields, ("error", _ERROR), ("tokens", pa.int64()), ("truncated", pa.bool_())]
        self._schema = pa.schema(fields)
        self._sink = _Sink()
        self._writer = pq.ParquetWriter(
            self._sink,
            self._schema,
            compression="zstd",
            use_dictionary=self._columns.repetitive or False,
            write_statistics=[name for name in _PLAIN if name in self._schema.names],
        )

    def part(self, part: ResultPart) -> Iterator[bytes]:
        """Row groups."""
        for start in range(0, part.num_inputs, GROUP_INPUTS):
            stop = min(start + GROUP_INPUTS, part.num_inputs)
            self._writer.write_table(self._table(part, start, stop), row_group_size=GROUP_INPUTS)
            yield self._sink.take()

    def end(self) -> bytes:
        """The footer."""
        self._writer.close()
        return self._sink.take()

    def _table(self, part: ResultPart, start: int, stop: int) -> pa.Table:
        num = stop - start
        index = pa.array(range(part.first_input + start, part.first_input + stop), pa.int64())
        if part.stored is None:
            values = {name: pa.nulls(num, kind) for name, kind in self._columns.fields}
            facts = [pa.array([part.error] * num, _ERROR), pa.array([0] * num, pa.int64()), pa.array([False] * num)]
        else:
            values = self._columns.arrays(part.stored, start, stop)
            facts = _facts_of(part.stored, start, stop, part.first_input)
        columns = {"index": index, **values, **dict(zip(("error", "tokens", "truncated"), facts, strict=True))}
        if "id" in self._schema.names:
            ids = [None] * num if part.ids is None else [_text_of(one) for one in part.ids[start:stop]]
            columns["id"] = pa.array(ids, pa.string())
        return pa.table([columns[name] for name in self._schema.names], schema=self._schema)


class _Columns(ABC):
    """The columns of one kind of job: `fields` (name, type), and which of them hold few different values."""

    repetitive: ClassVar[list[str]] = []
    fields: list[tuple[str, pa.DataType]]

    @abstractmethod
    def arrays(self, stored: StoredItems, start: int, stop: int) -> dict[str, pa.Array]:
        """By name, the values of the inputs from `start` to before `stop`; null where the input failed."""


class _Vectors(_Columns):
    """`embedding`: a list of float32, or with one vector a token a list of lists, beside `special_tokens`."""

    def __init__(self, sample: StoredItems | None) -> None:
        assert sample is None or isinstance(sample, StoredVectors)
        self._width = None if sample is None else int(sample.rows.shape[1])
        self._is_by_token = sample is not None and sample.starts is not None
        vector = pa.list_(pa.float32()) if self._width is None else pa.list_(pa.float32(), self._width)
        self.fields = [("embedding", pa.list_(vector) if self._is_by_token else vector)]
        if self._is_by_token:
            self.fields.append(("special_tokens", pa.list_(pa.int64())))

    def arrays(self, stored: StoredItems, start: int, stop: int) -> dict[str, pa.Array]:
        assert isinstance(stored, StoredVectors)
        if stored.rows.shape[1] != self._width or (stored.starts is not None) != self._is_by_token:
            raise ModelStoreError("the shards of this result do not have vectors of the same shape")
        has_failed = pa.array([str(i) in stored.summary["errors"] for i in range(start, stop)])
        if stored.starts is None:
            flat = pa.array(stored.rows[start:stop].reshape(-1))
            return {"embedding": pa.FixedSizeListArray.from_arrays(flat, self._width, mask=has_failed)}
        first, last = stored.starts[start], stored.starts[stop]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(stored.rows[first:last].reshape(-1)), self._width)
        offsets = pa.array([place - first for place in stored.starts[start : stop + 1]], pa.int32())
        specials = stored.summary.get("special_tokens") or [None] * len(stored)
        return {
            "embedding": pa.ListArray.from_arrays(offsets, vectors, mask=has_failed),
            "special_tokens": pa.array(specials[start:stop], pa.list_(pa.int64())),
        }


class _Scores(_Columns):
    """`labels` and `scores`, best first; `predicted` where there is a threshold."""

    repetitive: ClassVar[list[str]] = ["labels.list.element"]

    def __init__(self, sample: StoredItems | None) -> None:
        assert sample is None or isinstance(sample, StoredScores)
        self.fields = [("labels", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))]
        if sample is not None and sample.view.threshold is not None:
            self.fields.append(("predicted", pa.list_(pa.bool_())))

    def arrays(self, stored: StoredItems, start: int, stop: int) -> dict[str, pa.Array]:
        shown = _outputs(stored, start, stop)
        keys = {"labels": "label", "scores": "score", "predicted": "predicted"}
        return {
            name: pa.array([None if best is None else [one[keys[name]] for one in best] for best in shown], kind)
            for name, kind in self.fields
        }


class _Entities(_Columns):
    """`entities`: a list of structs with the fields that the entities have in JSON."""

    repetitive: ClassVar[list[str]] = ["entities.list.element.entity_group", "entities.list.element.entity"]

    def __init__(self, sample: StoredItems | None) -> None:
        assert sample is None or isinstance(sample, StoredEntities)
        names = {"entity_group": pa.string(), "entity": pa.string(), "index": pa.int64(), **_ENTITY}
        self.fields = [("entities", pa.list_(pa.struct(list(names.items()))))]

    def arrays(self, stored: StoredItems, start: int, stop: int) -> dict[str, pa.Array]:
        [(name, kind)] = self.fields
        return {name: pa.array(_outputs(stored, start, stop), kind)}


class _Sink(io.RawIOBase):
    """Keeps what is written until it is taken."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._place = 0

    def writable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Bytes written so far, taken or not."""
        return self._place

    def write(self, data: Any) -> int:
        """Keep a copy."""
        piece = bytes(data)
        self._pieces.append(piece)
        self._place += len(piece)
        return len(piece)

    def take(self) -> bytes:
        """What was written since the last time."""
        taken, self._pieces = b"".join(self._pieces), []
        return taken


_COLUMNS: dict[JobKind, Callable[[StoredItems | None], _Columns]] = {
    JobKind.EMBEDDING: _Vectors,
    JobKind.TEXT_CLASSIFICATION: _Scores,
    JobKind.TOKEN_CLASSIFICATION: _Entities,
}


def _facts_of(stored: StoredItems, start: int, stop: int, first_input: int) -> list[pa.Array]:
    """Errors, tokens and whether the text was cut."""
    summary = stored.summary
    errors = {place: placed(error, first_input) for place, error in summary["errors"].items()}
    truncated = set(summary["truncated"])
    return [
        pa.array([errors.get(str(i)) for i in range(start, stop)], _ERROR),
        pa.array(summary["tokens"][start:stop], pa.int64()),
        pa.array([i in truncated for i in range(start, stop)], pa.bool_()),
    ]


def _outputs(stored: StoredItems, start: int, stop: int) -> list[Any]:
    errors = stored.summary["errors"]
    outputs = stored.outputs(start, stop)
    return [None if str(i) in errors else one["output"] for i, one in enumerate(outputs, start)]


def _text_of(one: Any) -> str | None:
    return None if one is None else str(one)
