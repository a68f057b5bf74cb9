"""All rows of one database into an empty other one, of either engine, in one transaction of each.

While rows are copied nobody writes to the source: its transaction holds the write lock (SQLite), or locks every table
(PostgreSQL). Reads go on. Whoever wants to write waits, and after some seconds is told that it does not answer.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from ondol.sql import moved
from ondol.sql.database import plain_engine
from ondol.sql.tables import metadata

_ROWS_AT_ONCE = 500
_LARGE_ROWS_AT_ONCE = 16
"""Of tables whose rows may hold a megabyte."""
_LOCK_WAIT_S = 30
_DEADLOCK = "40P01"


class RowsDiffer(Exception):
    """What was read back from the target's table is not what was read from the source."""


class SourceNotMarked(Exception):
    """The target has everything, and the source does not know that it was moved: it would go on taking writes."""


@dataclass(frozen=True, slots=True)
class TableCopied:
    """One table: how many rows, and the digest of them all, which is the same on both sides."""

    name: str
    num_rows: int
    sha256: str


def copy_rows(
    source: str,
    target: str,
    *,
    finish: Callable[[Connection], None],
    told: Callable[[TableCopied], None] | None = None,
) -> list[TableCopied]:
    """Copy every table, parents first, read it back and compare; `finish` may still write to the target then.

    The target is committed first, then the source's mark that it was moved; SourceNotMarked if that one fails. Whatever
    else is raised leaves both as they were.
    """
    with _write_locked(source) as reader, _writing(target) as writer:
        copied = []
        for table in metadata.sorted_tables:
            num_rows, digest = _copy(table, reader, writer)
            again = _digest(table, writer)
            if again != (num_rows, digest):
                raise RowsDiffer(f"{table.name}: {num_rows} rows were read and {again[0]} read back, or they differ")
            copied.append(TableCopied(table.name, num_rows, digest))
            if told is not None:
                told(copied[-1])
        finish(writer)
        moved.mark_moved(reader)
        writer.commit()
        try:
            reader.commit()
        except DBAPIError as exc:
            raise SourceNotMarked(str(exc.orig).splitlines()[0][:300]) from exc
    return copied


def num_rows_of(conn: Connection) -> dict[str, int]:
    """How many rows each table has, those that have none left out."""
    found = {}
    for table in metadata.sorted_tables:
        num = int(conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())
        if num:
            found[table.name] = num
    return found


def _copy(table: sa.Table, reader: Connection, writer: Connection) -> tuple[int, str]:
    digest, num = hashlib.sha256(), 0
    for rows in _rows(table, reader):
        for row in rows:
            digest.update(_canonical(row))
        writer.execute(sa.insert(table), [_as_values(table, row) for row in rows])
        num += len(rows)
    return num, digest.hexdigest()


def _digest(table: sa.Table, conn: Connection) -> tuple[int, str]:
    digest, num = hashlib.sha256(), 0
    for rows in _rows(table, conn):
        for row in rows:
            digest.update(_canonical(row))
        num += len(rows)
    return num, digest.hexdigest()


def _rows(table: sa.Table, conn: Connection) -> Iterator[Sequence[sa.Row[Any]]]:
    """All rows by primary key, in the order of code points on both engines, a bounded number at a time."""
    keys = list(table.primary_key.columns)
    is_large = any(isinstance(column.type, sa.LargeBinary) for column in table.columns)
    size = _LARGE_ROWS_AT_ONCE if is_large else _ROWS_AT_ONCE
    order = [sa.collate(key, "C") if _is_text(key) and conn.dialect.name != "sqlite" else key for key in keys]
    with conn.execute(sa.select(table).order_by(*order), execution_options={"yield_per": size}) as found:
        yield from found.partitions()


def _is_text(column: sa.Column[Any]) -> bool:
    return isinstance(column.type, sa.String)


def _as_values(table: sa.Table, row: sa.Row[Any]) -> dict[str, Any]:
    """The row for an INSERT."""
    return {column.name: value for column, value in zip(table.columns, row, strict=True)}


def _canonical(row: sa.Row[Any]) -> bytes:
    parts: list[Any] = []
    for value in row:
        if isinstance(value, memoryview | bytes):
            parts.append(["bytes", hashlib.sha256(value).hexdigest()])
        elif isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
            parts.append(int(value))
        else:
            parts.append(value)
    return json.dumps(parts, sort_keys=True, separators=(",", ":")).encode() + b"\n"


@contextmanager
def _write_locked(url: str) -> Iterator[Connection]:
    engine = _engine(url)
    try:
        with engine.connect() as conn:
            if engine.dialect.name != "sqlite":
                names = ", ".join(f'"{table.name}"' for table in metadata.sorted_tables)
                _lock(conn, names)
            yield conn
    finally:
        engine.dispose()


def _lock(conn: Connection, names: str) -> None:
    """All tables at once; a writer that holds one of them already may end in a deadlock with us: then once more."""
    until = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            conn.exec_driver_sql(f"SET lock_timeout = {_LOCK_WAIT_S * 1000}")
            conn.exec_driver_sql(f"LOCK TABLE {names} IN EXCLUSIVE MODE")
            return
        except OperationalError as exc:
            if getattr(exc.orig, "sqlstate", None) != _DEADLOCK or time.monotonic() > until:
                raise
            conn.rollback()


@contextmanager
def _writing(url: str) -> Iterator[Connection]:
    engine = _engine(url)
    try:
        with engine.connect() as conn:
            yield conn
    finally:
        engine.dispose()


def _engine(url: str) -> Engine:
    engine = plain_engine(url)
    if engine.dialect.name != "sqlite":
        return engine
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def _configure_sqlite(dbapi_connection: Any, _record: Any) -> None:
    dbapi_connection.isolation_level = None
    for pragma in (f"busy_timeout={_LOCK_WAIT_S * 1000}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        dbapi_connection.execute(f"PRAGMA {pragma}").close()


def _begin_immediate(conn: Connection) -> None:
    conn.exec_driver_sql("BEGIN IMMEDIATE")
