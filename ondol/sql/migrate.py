"""Bring a database to the newest schema, or tell which one it has."""

from __future__ import annotations

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

from ondol.contract.errors import DatabaseUnavailable

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK_KEY = 0x0D01


def upgrade(url: str) -> None:
    """Run all migrations that are missing; safe to call from several processes at once."""
    engine = sa.create_engine(url)
    try:
        with _translated(), engine.connect() as conn:
            if engine.dialect.name == "sqlite":
                conn.exec_driver_sql("PRAGMA journal_mode=WAL")
                conn.exec_driver_sql("PRAGMA busy_timeout=30000")
                conn.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                conn.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
            command.upgrade(_config(conn), "head")
            conn.commit()
    finally:
        engine.dispose()


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
