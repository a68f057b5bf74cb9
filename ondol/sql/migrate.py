"""Bring a database to the newest schema, or tell which one it has."""

from __future__ import annotations

import threading
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

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK_KEY = 0x0D01
# Whoever waits for a table's lock holds up all who come after: so a migration waits little, lets go and tries again.
_RETRY_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 2.0, 2.0, 5.0, 5.0, 5.0)
_BUSY = ("55P03", "40P01")
"""PostgreSQL's codes for a lock that was not to be had in time, and for a deadlock."""


def upgrade(url: str) -> None:
    """Run all migrations that are missing; safe to call from several processes at once, and under load.

    Conflict if the schema is that of a newer release: it is left as it is.
    """
    engine = sa.create_engine(url)
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


def _upgrade(engine: sa.Engine) -> None:
    with engine.connect() as conn:
        if engine.dialect.name == "sqlite":
            conn.exec_driver_sql("PRAGMA journal_mode=WAL")
            conn.exec_driver_sql("PRAGMA busy_timeout=30000")
            conn.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            conn.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
            conn.execute(sa.text("SET LOCAL lock_timeout = '2s'"))
        _refuse_newer(conn)
        command.upgrade(_config(conn), "head")
        conn.commit()


def current(url: str) -> str | None:
    """The revision the database has, None when it is empty."""
    engine = sa.create_engine(url)
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


def _config(conn: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = conn
    return config
