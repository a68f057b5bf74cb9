"""SQLite's database files, as backups and their way back handle them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ondol.contract.errors import DatabaseUnavailable, InvalidPayload

SQLITE = "sqlite:///"
_BUSY_S = 30


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite URL, None for another database."""
    return Path(url.removeprefix(SQLITE)) if url.startswith(SQLITE) else None


def open_sqlite(path: Path) -> sqlite3.Connection:
    """A connection that waits half a minute for others' locks, and begins no transaction by itself."""
    return sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)


@contextmanager
def sqlite_errors() -> Iterator[None]:
    """SQLite's errors as DatabaseUnavailable (locked, full, not writable) or InvalidPayload (damaged)."""
    try:
        yield
    except sqlite3.OperationalError as exc:
        raise DatabaseUnavailable(f"SQLite could not do it: {exc}") from exc
    except sqlite3.DatabaseError as exc:
        raise InvalidPayload(f"the file is damaged: {exc}") from exc


def check_pages(connection: sqlite3.Connection, file: Path) -> None:
    """InvalidPayload, naming `file`, if the database is not sound."""
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise InvalidPayload(f"{file} is damaged: {found}")


def revision_in(connection: sqlite3.Connection) -> str | None:
    """The schema's revision; None where there is no schema of ours."""
    query = "SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'"
    if not connection.execute(query).fetchone()[0]:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])
