"""Parquet by pyarrow: strings, whole and decimal numbers, booleans, dictionaries of strings, lists of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from pyarrow import types

from workers.training.data.examples import Source
from workers.training.data.problems import CellProblem, Problems, file_error, listed
from workers.training.data.table import Number, Row

_BATCH_ROWS = 1_024


class ParquetTable:
    """The rows of one file, read a thousand at a time."""

    def __init__(self, path: Path, source: Source, problems: Problems) -> None:
        self._path = path
        self._source = source
        self._problems = problems
        with self._open() as file:
            self._schema = file.schema_arrow
        self.columns = tuple(self._schema.names)
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise file_error(source, f"has more than one column {listed(twice)}; rename one")

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows; InvalidPayload for a column of a type that is no text, or a damaged file."""
        for name in columns:
            self._check_type(name)
        number = 0
        with self._open() as file:
            batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns), use_threads=False)
            while (batch := self._next(batches, number + 1)) is not None:
                for cells in self._cells(batch, number):
                    number += 1
                    yield Row(number, None, cells)

    def _open(self) -> Any:
        try:
            return pyarrow.parquet.ParquetFile(self._path)
        except (pyarrow.ArrowException, OSError) as exc:
            raise file_error(self._source, f"is not readable as Parquet ({_first_line(exc)}); write it again") from exc

    def _check_type(self, name: str) -> None:
        kind = self._schema.field(name).type
        if not _is_readable(kind):
            message = (
                f"has column {name!r} of type {kind}; Parquet columns may be strings, numbers, booleans, dictionaries "
                "of strings, or lists of them: cast it to string"
            )
            raise file_error(self._source, message)

    def _next(self, batches: Iterator[Any], row: int) -> Any:
        try:
            return next(batches, None)
        except MemoryError:  # pyarrow's own is an ArrowException too
            raise
        except (pyarrow.ArrowException, OSError) as exc:
            problem = CellProblem(f"the file is damaged here or a little later ({_first_line(exc)}); write it again")
            raise self._problems.stop(row, None, problem) from exc

    def _cells(self, batch: Any, number: int) -> Iterator[dict[str, Any]]:
        columns = {
            name: self._values(column, name, number) for name, column in zip(batch.schema.names, batch, strict=True)
        }
        for i in range(batch.num_rows):
            yield {name: values[i] for name, values in columns.items()}

    def _values(self, column: Any, name: str, number: int) -> list[Any]:
        try:
            return [_cell(value) for value in column.to_pylist()]
        except UnicodeDecodeError as exc:
            row = number + _first_undecodable(column)
            problem = CellProblem("is not UTF-8; write the column as UTF-8 strings", column=name)
            raise self._problems.stop(row, None, problem) from exc


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else Number(repr(value))
    if isinstance(value, int):
        return Number(value)
    if isinstance(value, list):
        return [_cell(item) for item in value]
    return {key: _cell(item) for key, item in value.items()}


def _first_undecodable(column: Any) -> int:
    """The place from 1 of the value that is not UTF-8."""
    for i, value in enumerate(column, start=1):
        try:
            value.as_py()
        except UnicodeDecodeError:
            return i
    return len(column)


def _is_readable(kind: Any) -> bool:
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        item = kind.value_type
        return _is_scalar(item) or (types.is_struct(item) and all(_is_scalar(field.type) for field in item))
    if types.is_struct(kind):
        return False
    return _is_scalar(kind)


def _is_scalar(kind: Any) -> bool:
    if types.is_dictionary(kind):
        return _is_scalar(kind.value_type)
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(
        is_text or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind)
    )


def _first_line(exc: BaseException) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0][:200]
