"""Bring a database to the newest schema, or tell which one it has."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from ondol.contract.errors import Conflict, DatabaseUnavailable
from ondol.sql.database import plain_engine
from ondol.sql.index_building import IS_CONCURRENT

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK_KEY = 0x0D01
# Whoever waits for a table's lock holds up all who come after: so a migration waits little, lets go and tries again.
_RETRY_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 2.0, 2.0, 5.0, 5.0, 5.0)
_TURN_EVERY_S = 0.2
_TURN_LIMIT_S = 1800.0
"""Longer than the indexes of a large table take."""
_HOLDER = sa.text(
    "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = :key AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_BUSY = ("55P03", "40P01")
"""PostgreSQL's codes for a lock that was not to be had in time, and for a deadlock."""


def upgrade(url: str) -> None:
    """Run all migrations that are missing; safe to call from several processes at once, and under load.

    On PostgreSQL each is committed by itself, and goes on where a crash has left it; on SQLite all of them are one
    transaction. Conflict if the schema is that of a newer release: it is left as it is.
    """
    if url.startswith("sqlite"):
        _make_private(url)
    # A connection that failed is not used again: it may have the lock, or settings of the moment.
    engine = plain_engine(url)
    try:
        with _translated():
            for pause_s in (*_RETRY_PAUSES_S, None):
                try:
                    _upgrade(engine)
                    return
                except OperationalError as exc:
                    if pause_s is None or getattr(exc.orig, "sqlstate", None) not in _BUSY:
                        raise
                    threading.Event().wait(pause_s)
    finally:
        engine.dispose()


def upgrade_within(conn: Connection) -> None:
    """Run all migrations that are missing in the transaction that the caller has begun, and do not end it.

    Whoever else uses the tables waits for that end. Conflict if the schema is that of a newer release.
    """
    _refuse_newer(conn)
    command.upgrade(_config(conn), "head")


def _make_private(url: str) -> None:
    """A new file is its owner's alone: it will hold people's texts and digests of keys."""
    path = Path(sa.make_url(url).database or "")
    if path.parent.is_dir():
        path.touch(mode=0o600, exist_ok=True)


def _upgrade(engine: sa.Engine) -> None:
    with engine.connect() as conn:
        if engine.dialect.name == "sqlite":
            conn.exec_driver_sql("PRAGMA journal_mode=WAL")
            conn.exec_driver_sql("PRAGMA busy_timeout=30000")
            conn.exec_driver_sql("BEGIN IMMEDIATE")
            upgrade_within(conn)
            conn.commit()
            return
        _take_turn(conn)
        conn.execute(sa.text("SET lock_timeout = '2s'"))
        _refuse_newer(conn)
        conn.commit()
        command.upgrade(_config(conn, is_concurrent=True), "head")


def _take_turn(conn: Connection) -> None:
    """One at a time, until the connection ends; DatabaseUnavailable if the other one goes on for half an hour.

    Whoever waits asks again and again: one that waited inside a statement would be waited for by an index that the
    other builds, which is a deadlock.
    """
    until = time.monotonic() + _TURN_LIMIT_S
    while not conn.execute(sa.text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK_KEY}).scalar_one():
        if time.monotonic() > until:
            holder = conn.execute(_HOLDER, {"key": _LOCK_KEY}).scalar()
            raise DatabaseUnavailable(
                f"process {holder} of the server has been bringing the schema up to date for {_TURN_LIMIT_S:.0f} s; "
                "wait until it has ended, or end it (pg_terminate_backend), and begin anew: nothing is lost"
            )
        conn.rollback()
        threading.Event().wait(_TURN_EVERY_S)
    conn.commit()


def current(url: str) -> str | None:
    """The revision the database has, None when it is empty."""
    engine = plain_engine(url)
    try:
        with _translated(), engine.connect() as conn:
            return MigrationContext.configure(conn).get_current_revision()
    finally:
        engine.dispose()


def newest() -> str:
    """The revision this code needs."""
    head = ScriptDirectory.from_config(_config(None)).get_current_head()
    assert head is not None
    return head


def is_of_newer_release(revision: str) -> bool:
    """Whether a schema of this revision was made by a release that came after this one."""
    return revision.isdecimal() and int(revision) > int(newest())


def _refuse_newer(conn: Connection) -> None:
    revision = MigrationContext.configure(conn).get_current_revision()
    if revision is not None and is_of_newer_release(revision):
        raise Conflict(
            f"the schema is at {revision}, which this release does not know (its newest is {newest()}): a newer one"
            " made it; install that one. A schema is never taken back"
        )


def known() -> frozenset[str]:
    """All revisions that this code can bring up to date, and the newest."""
    return frozenset(script.revision for script in ScriptDirectory.from_config(_config(None)).walk_revisions())


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OperationalError as exc:
        reason = str(exc.orig).splitlines()[0][:200]
        raise DatabaseUnavailable(f"the database does not answer: {reason}; check ONDOL_DATABASE_URL") from exc


def _config(conn: Connection | None, *, is_concurrent: bool = False) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = conn
    config.attributes[IS_CONCURRENT] = is_concurrent
    return config
