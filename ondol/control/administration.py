"""Administration of a database: schema, projects, keys. Every function opens it, does one thing and closes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ondol.sql import leftovers, migrate
from ondol.sql.database import Database
from ondol.sql.keys import DEFAULT_PROJECT
from ondol.sql.records import KeyRecord, ProjectRecord
from ondol.sql.unit_of_work import UnitOfWork

T = TypeVar("T")


def upgrade_database(url: str) -> None:
    """Bring the schema to the newest revision and make sure that the default project exists."""
    migrate.upgrade(url)
    _write(url, lambda uow: uow.keys.ensure_project())


def current_revision(url: str) -> str | None:
    """The schema's revision, None for an empty database."""
    return migrate.current(url)


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What is true of a database: product with version, schema and the one needed, and how far its clock is ahead.

    `journal_mode` is SQLite's, `major_version` PostgreSQL's; None for the other.
    """

    server: str
    revision: str | None
    newest_revision: str
    journal_mode: str | None
    major_version: int | None
    clock_ahead_s: float


def describe_database(url: str) -> DatabaseFacts:
    """The facts; DatabaseUnavailable if it does not answer. Changes nothing."""
    revision = migrate.current(url)
    database = Database(url, pool_size=1)
    try:
        before = time.time()
        server, journal_mode, major_version, its_time = database.read(_facts)
        clock_ahead_s = its_time - (before + time.time()) / 2
    finally:
        database.close()
    return DatabaseFacts(server, revision, migrate.newest(), journal_mode, major_version, clock_ahead_s)


def create_key(url: str, *, project: str = DEFAULT_PROJECT, name: str, is_admin: bool = False) -> str:
    """A new key's secret, which is shown this once."""
    _, secret = _write(url, lambda uow: uow.keys.create(project=project, name=name, is_admin=is_admin))
    return secret


def list_keys(url: str) -> list[KeyRecord]:
    """All keys, revoked ones too."""
    return _read(url, lambda uow: uow.keys.list_all())


def revoke_key(url: str, key_id: str) -> None:
    """Revoke a key; NotFound if there is none with this id."""
    _write(url, lambda uow: uow.keys.revoke(key_id))


def list_projects(url: str) -> list[ProjectRecord]:
    """All projects, by name."""
    return _read(url, lambda uow: uow.keys.list_projects())


def set_project(url: str, name: str, changes: Mapping[str, float | int | None]) -> ProjectRecord:
    """Change columns of a project's share (weight, max_queued_jobs, max_queued_tokens); NotFound."""
    return _write(url, lambda uow: uow.keys.set_project(name, changes))


def has_keys(url: str) -> bool:
    """Whether a valid key exists."""
    return _read(url, lambda uow: uow.keys.has_keys())


def open_workers(url: str) -> set[str]:
    """Names of the workers and trainer nodes whose lease runs."""
    return _read(url, lambda uow: {session.worker for session in uow.sessions.open_sessions()})


def manifests_in_use(url: str, *, grace_s: float) -> set[str]:
    """Digests of the files of versions that exist, were deleted less than `grace_s` ago, or serve an unfinished job."""
    return _read(url, lambda uow: leftovers.manifests_in_use(uow, grace_s=grace_s))


def known_manifests(url: str) -> set[str]:
    """Digests of the files of all versions that there ever were, and of those that somebody began to publish."""
    return _read(url, leftovers.known_manifests)


def forget_intents(url: str, stored: Collection[str], *, older_than_s: float) -> None:
    """Forget begun publishes that are older and left no manifest among `stored`."""
    _write(url, lambda uow: leftovers.forget_intents(uow, stored, older_than_s=older_than_s))


def jobs_that_exist(url: str, ids: Collection[str]) -> set[str]:
    """Those of the job ids that have a row, of all projects."""
    return _read(url, lambda uow: leftovers.jobs_that_exist(uow, ids))


def _facts(uow: UnitOfWork) -> tuple[str, str | None, int | None, float]:
    if uow.is_sqlite:
        version = uow.conn.exec_driver_sql("SELECT sqlite_version()").scalar_one()
        mode = str(uow.conn.exec_driver_sql("PRAGMA journal_mode").scalar_one())
        return f"SQLite {version}", mode, None, uow.now
    number = int(uow.conn.exec_driver_sql("SHOW server_version_num").scalar_one())
    return f"PostgreSQL {number // 10_000}.{number % 10_000}", None, number // 10_000, uow.now


def _read(url: str, work: Callable[[UnitOfWork], T]) -> T:
    database = Database(url, pool_size=1)
    try:
        return database.read(work)
    finally:
        database.close()


def _write(url: str, work: Callable[[UnitOfWork], T]) -> T:
    database = Database(url)
    try:
        return database.write(work)
    finally:
        database.close()
