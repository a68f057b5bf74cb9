"""Statements that are run for many rows at once, on the path that every job takes.

SQLAlchemy looks up and converts each value of each row anew; here that is done once a statement and engine, which
leaves a fraction of the time a row. SQLite runs the statement once a row. PostgreSQL runs one statement for all rows,
which is given the columns that differ between them as arrays, and the others once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect

Row = Mapping[str, Any]

MAX_ROWS, MAX_BYTES = 1_000, 4 * 1024**2
"""Rows of one statement on PostgreSQL, and bytes of their binary columns: it is held in memory as text."""
_BOUND = "b_"
"""Stands before the names of values, which in an UPDATE may not be those of columns."""

dump_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
"""How JSON columns are written. Made once: `json.dumps` with arguments of its own makes an encoder for each value."""


class ManyRows:
    """An INSERT of rows, which are mappings with exactly these names, at least two; with `keys` an UPDATE by them.

    Thread-safe.
    """

    def __init__(self, table: sa.Table, names: Sequence[str], *, keys: Sequence[str] = ()) -> None:
        self._binary = [name for name in names if isinstance(table.c[name].type, sa.LargeBinary)]
        self._one_by_one = _OneByOne(table, tuple(names), tuple(keys))
        self._at_once = _AtOnce(table.name, tuple(names), tuple(keys), {name: _column(table.c[name]) for name in names})

    def execute(self, conn: Connection, rows: Sequence[Row]) -> None:
        """Run the statement for each row; errors are SQLAlchemy's. Equal objects in neighbouring rows cost once."""
        if not rows:
            return
        if conn.dialect.name == "sqlite":
            self._one_by_one.execute(conn, rows)
            return
        for part in self._parts(rows):
            self._at_once.execute(conn, part)

    def _parts(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        part: list[Row] = []
        size = 0
        for row in rows:
            row_size = sum(len(row[name] or b"") for name in self._binary)
            if part and (len(part) == MAX_ROWS or size + row_size > MAX_BYTES):
                yield part
                part, size = [], 0
            part.append(row)
            size += row_size
        yield part


@dataclass(frozen=True, slots=True)
class _Prepared:
    sql: str
    conversions: tuple[tuple[str, Callable[[Any], Any]], ...]
    """Names of values that the driver does not take as they are, and what makes them so."""
    pick: Callable[[Row], tuple[Any, ...]]
    """The values in the order of the statement."""


@dataclass(slots=True)
class _OneByOne:
    """The statement with one row's values, for a driver that runs it once a row and takes them by position."""

    table: sa.Table
    names: tuple[str, ...]
    keys: tuple[str, ...]
    _prepared: _Prepared | None = None

    def execute(self, conn: Connection, rows: Sequence[Row]) -> None:
        prepared = self._prepared or self._prepare(conn.dialect)
        ready = [dict(row) for row in rows]
        for name, convert in prepared.conversions:
            for row, value in zip(ready, _converted([row[name] for row in ready], convert), strict=True):
                row[name] = value
        conn.exec_driver_sql(prepared.sql, list(map(prepared.pick, ready)))

    def _prepare(self, dialect: Dialect) -> _Prepared:
        columns = self.table.c
        values: dict[str, Any] = {name: sa.bindparam(_BOUND + name) for name in self.names if name not in self.keys}
        statement: sa.Insert | sa.Update = sa.insert(self.table).values(values)
        if self.keys:
            statement = sa.update(self.table).values(values)
            statement = statement.where(*(columns[key] == sa.bindparam(_BOUND + key) for key in self.keys))
        compiled: Any = statement.compile(dialect=dialect)
        conversions = []
        for name in self.names:
            convert = columns[name].type.dialect_impl(dialect).bind_processor(dialect)
            if convert is not None:
                conversions.append((name, convert))
        order = [bound.removeprefix(_BOUND) for bound in compiled.positiontup]
        self._prepared = _Prepared(compiled.string, tuple(conversions), itemgetter(*order))
        return self._prepared


@dataclass(frozen=True, slots=True)
class _Column:
    """How PostgreSQL is given a column's values."""

    cast: str
    convert: Callable[[Any], Any] | None
    """What makes a value one that the driver takes."""
    in_array: Callable[[Any], str]
    """A converted value as the text of an array holds it."""


@dataclass(slots=True)
class _AtOnce:
    """One statement for all rows; its text depends on which columns differ between them."""

    table: str
    names: tuple[str, ...]
    keys: tuple[str, ...]
    columns: Mapping[str, _Column]
    _texts: dict[tuple[str, ...], str] = field(default_factory=dict)

    def execute(self, conn: Connection, rows: Sequence[Row]) -> None:
        same: list[Any] = []
        arrays: list[str] = []
        varying: list[str] = []
        for name in self.names:
            column = self.columns[name]
            values = [row[name] for row in rows]
            if column.convert is not None:
                values = list(_converted(values, column.convert))
            if name in self.keys or values.count(values[0]) < len(values):
                varying.append(name)
                arrays.append("{" + ",".join(map(column.in_array, values)) + "}")
            else:
                same.append(values[0])
        which = tuple(varying)
        text = self._texts.get(which)
        if text is None:
            text = self._texts[which] = self._update(which) if self.keys else self._insert(which)
        conn.exec_driver_sql(text, (*same, *arrays))

    def _insert(self, varying: Sequence[str]) -> str:
        values = ", ".join(self._value(name, varying) for name in self.names)
        given = f" FROM {self._given(varying)}" if varying else ""
        return f"INSERT INTO {self.table} ({', '.join(self.names)}) SELECT {values}{given}"

    def _update(self, varying: Sequence[str]) -> str:
        sets = ", ".join(f"{name} = {self._value(name, varying)}" for name in self.names if name not in self.keys)
        are_same = " AND ".join(f"{self.table}.{key} = given.{key}" for key in self.keys)
        return f"UPDATE {self.table} SET {sets} FROM {self._given(varying)} WHERE {are_same}"  # noqa: S608  # names of ours

    def _given(self, varying: Sequence[str]) -> str:
        arrays = ", ".join(f"%s::{self.columns[name].cast}[]" for name in varying)
        return f"unnest({arrays}) AS given ({', '.join(varying)})"

    def _value(self, name: str, varying: Sequence[str]) -> str:
        return f"given.{name}" if name in varying else f"%s::{self.columns[name].cast}"


def text_array(values: Iterable[str]) -> str:
    """Texts as the text of one of PostgreSQL's arrays."""
    return "{" + ",".join(map(_quoted, values)) + "}"


def _converted(values: Iterable[Any], convert: Callable[[Any], Any]) -> Iterator[Any]:
    last: Any = None
    converted = convert(None)
    for value in values:
        if value is not last:
            last, converted = value, convert(value)
        yield converted


def _column(column: sa.Column[Any]) -> _Column:
    kind = column.type
    if isinstance(kind, sa.JSON):
        return _Column("json", _json_or_null if kind.none_as_null else dump_json, _quoted)
    if isinstance(kind, sa.LargeBinary):
        return _Column("bytea", None, _hex)
    if isinstance(kind, sa.Boolean):
        return _Column("boolean", None, _plain)
    if isinstance(kind, sa.BigInteger):
        return _Column("bigint", None, _plain)
    if isinstance(kind, sa.Integer):
        return _Column("integer", None, _plain)
    if isinstance(kind, sa.Float):
        return _Column("double precision", None, _plain)
    assert isinstance(kind, sa.String), f"no rule for {column}"
    return _Column("text", None, _quoted)


def _json_or_null(value: Any) -> str | None:
    return None if value is None else dump_json(value)


def _quoted(value: str | None) -> str:
    if value is None:
        return "NULL"
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _plain(value: float | bool | None) -> str:
    return "NULL" if value is None else str(value)


def _hex(value: bytes | None) -> str:
    return "NULL" if value is None else '"\\\\x' + value.hex() + '"'
