"""Administration of a database: schema, projects, keys. Every function opens it, does one thing and closes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ondol.sql import migrate
from ondol.sql.database import Database
from ondol.sql.keys import DEFAULT_PROJECT
from ondol.sql.records import KeyRecord
from ondol.sql.unit_of_work import UnitOfWork

T = TypeVar("T")


def upgrade_database(url: str) -> None:
    """Bring the schema to the newest revision and make sure that the default project exists."""
    migrate.upgrade(url)
    _write(url, lambda uow: uow.keys.ensure_project())


def current_revision(url: str) -> str | None:
    """The schema's revision, None for an empty database."""
    return migrate.current(url)


def create_key(url: str, *, project: str = DEFAULT_PROJECT, name: str, is_admin: bool = False) -> str:
    """A new key's secret, which is shown this once."""
    _, secret = _write(url, lambda uow: uow.keys.create(project=project, name=name, is_admin=is_admin))
    return secret


def list_keys(url: str) -> list[KeyRecord]:
    """All keys, revoked ones too."""
    return _write(url, lambda uow: uow.keys.list_all())


def revoke_key(url: str, key_id: str) -> None:
    """Revoke a key; NotFound if there is none with this id."""
    _write(url, lambda uow: uow.keys.revoke(key_id))


def has_keys(url: str) -> bool:
    """Whether a valid key exists."""
    return _write(url, lambda uow: uow.keys.has_keys())


def _write(url: str, work: Callable[[UnitOfWork], T]) -> T:
    database = Database(url)
    try:
        return database.write(work)
    finally:
        database.close()
