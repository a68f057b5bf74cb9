"""Moving a database to another engine or place while clients go on: one copy, then the old one refuses writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from ondol.contract.errors import Conflict, DatabaseUnavailable, InvalidPayload, NotFound
from ondol.control.sqlite_files import sqlite_path
from ondol.sql import copying, migrate, moved, restored
from ondol.sql.copying import TableCopied
from ondol.sql.database import plain_engine
from ondol.sql.unit_of_work import UnitOfWork

__all__ = ["Moved", "TableCopied", "move_database", "reopen_database"]


@dataclass(frozen=True, slots=True)
class Moved:
    """A finished move: what was copied, and how many jobs that ran then wait again in the new database."""

    tables: tuple[TableCopied, ...]
    num_handed_back: int
    took_s: float

    @property
    def num_rows(self) -> int:
        """Rows of all tables."""
        return sum(table.num_rows for table in self.tables)


def move_database(source: str, target: str, *, told: Callable[[TableCopied], None] | None = None) -> Moved:
    """Copy all of `source` into the empty `target`, then let `source` refuse every write.

    Reads of the source go on meanwhile; writes wait, and are refused as DatabaseUnavailable after some seconds, so
    that clients try again. What was accepted before is in the target; nothing is accepted after. Conflict if the target
    holds anything, InvalidPayload if the source's schema is not this release's or both are the same database.
    """
    began_at = time.monotonic()
    path = sqlite_path(source)
    if path is not None and not path.exists():
        raise NotFound(f"there is no database at {path}")
    if sa.make_url(source) == sa.make_url(target):
        raise InvalidPayload("the target is the database itself; name another one")
    _check_schema(source)
    target_path = sqlite_path(target)
    if target_path is not None:
        target_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    migrate.upgrade(target)
    _refuse_full(target)
    num_handed_back = 0

    def finish(conn: Connection) -> None:
        nonlocal num_handed_back
        uow = UnitOfWork(conn, is_sqlite=conn.dialect.name == "sqlite")
        num_handed_back = restored.hand_everything_back(uow, reason="moved")

    try:
        tables = copying.copy_rows(source, target, finish=finish, told=told)
    except copying.RowsDiffer as exc:
        raise Conflict(f"nothing was moved: {exc}", code="copy_differs") from exc
    except copying.SourceNotMarked as exc:
        raise DatabaseUnavailable(
            f"all was copied, but the source could not be marked as moved; empty the target and begin anew: {exc}"
        ) from exc
    except DBAPIError as exc:
        reason = str(exc.orig).splitlines()[0][:300]
        raise DatabaseUnavailable(f"nothing was moved, both databases are as they were: {reason}") from exc
    return Moved(tuple(tables), num_handed_back, time.monotonic() - began_at)


def reopen_database(url: str) -> bool:
    """Let a database that was moved take writes again; whether it was. Only if nobody has worked with its copy."""
    if migrate.current(url) is None:
        return False
    engine = plain_engine(url)
    try:
        with engine.begin() as conn:
            return moved.unmark_moved(conn) > 0
    finally:
        engine.dispose()


def _check_schema(url: str) -> None:
    revision = migrate.current(url)
    if revision != migrate.newest():
        raise InvalidPayload(
            f"the database has schema {revision}, not {migrate.newest()}; run `ondol db upgrade` first"
        )
    engine = plain_engine(url)
    try:
        with engine.connect() as conn:
            if moved.is_moved(conn):
                raise Conflict("this database was moved already; use the new one, or `ondol db reopen`", code="moved")
    finally:
        engine.dispose()


def _refuse_full(url: str) -> None:
    engine = plain_engine(url)
    try:
        with engine.connect() as conn:
            found = copying.num_rows_of(conn)
    finally:
        engine.dispose()
    if found:
        held = ", ".join(f"{num} {name}" for name, num in found.items())
        raise Conflict(f"the target is not empty, it holds {held}; make an empty one", code="database_not_empty")
