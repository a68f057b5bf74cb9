"""Projects and API keys. Only SHA-256 digests of keys are stored: they are random, so nothing slower is needed."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Row

from ondol.contract.errors import NotFound
from ondol.contract.ids import new_id
from ondol.contract.webhook_signature import new_secret
from ondol.sql.records import KeyRecord, ProjectRecord
from ondol.sql.tables import api_keys, projects

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork

DEFAULT_PROJECT = "default"


class KeyRepository:
    """Who may call, and for which project."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn

    def project_id(self, name: str = DEFAULT_PROJECT) -> str | None:
        """The id of the project with this name, if there is one."""
        found = self._conn.execute(sa.select(projects.c.id).where(projects.c.name == name)).scalar()
        return None if found is None else str(found)

    def ensure_project(self, name: str = DEFAULT_PROJECT) -> str:
        """The id of the project with this name, made if need be."""
        known = self.project_id(name)
        if known is not None:
            return known
        insert = sqlite.insert if self._uow.is_sqlite else postgresql.insert
        row = {"id": new_id("prj"), "name": name, "created_at": self._uow.now}
        self._conn.execute(insert(projects).values(**row).on_conflict_do_nothing())  # two processes may begin at once
        return str(self._conn.execute(sa.select(projects.c.id).where(projects.c.name == name)).scalar_one())

    def list_projects(self) -> list[ProjectRecord]:
        """All projects, by name."""
        return [ProjectRecord(*row) for row in self._conn.execute(_projects().order_by(projects.c.name))]

    def set_project(self, name: str, changes: Mapping[str, float | int | None]) -> ProjectRecord:
        """Change the weight or the limits of a project; NotFound if there is none of the name."""
        assert changes.keys() <= {"weight", "max_queued_jobs", "max_queued_tokens"}
        self._conn.execute(sa.update(projects).where(projects.c.name == name).values(**changes))
        row = self._conn.execute(_projects().where(projects.c.name == name)).one_or_none()
        if row is None:
            raise NotFound(f"there is no project {name[:96]!r}; `ondol projects ls` lists them")
        return ProjectRecord(*row)

    def find_webhook_secret(self, project_id: str) -> str | None:
        """The secret that signs the project's webhooks, if one was made."""
        query = sa.select(projects.c.webhook_secret).where(projects.c.id == project_id)
        return self._conn.execute(query).scalar()

    def ensure_webhook_secret(self, project_id: str) -> str:
        """The secret that signs the project's webhooks, made if need be."""
        known = self.find_webhook_secret(project_id)
        if known is not None:
            return known
        without = sa.update(projects).where(projects.c.id == project_id, projects.c.webhook_secret.is_(None))
        self._conn.execute(without.values(webhook_secret=new_secret()))
        made = self.find_webhook_secret(project_id)
        assert made is not None
        return made

    def rotate_webhook_secret(self, project_id: str) -> str:
        """A fresh secret for the project's webhooks; the one before signs nothing any more."""
        secret = new_secret()
        self._conn.execute(sa.update(projects).where(projects.c.id == project_id).values(webhook_secret=secret))
        return secret

    def create(self, *, project: str, name: str, is_admin: bool) -> tuple[KeyRecord, str]:
        """A new key and its secret, which is shown once and never stored."""
        project_id = self.ensure_project(project)
        secret = "ondol_" + secrets.token_urlsafe(32)
        key_id = new_id("key")
        now = self._uow.now
        row = {"id": key_id, "project_id": project_id, "name": name, "key_hash": digest(secret), "is_admin": is_admin}
        self._conn.execute(sa.insert(api_keys), [row | {"created_at": now}])
        return KeyRecord(key_id, project_id, project, name, is_admin, now, None), secret

    def find(self, secret: str) -> KeyRecord | None:
        """The valid key with this secret, if there is one."""
        row = self._conn.execute(
            _query().where(api_keys.c.key_hash == digest(secret), api_keys.c.revoked_at.is_(None))
        ).one_or_none()
        return None if row is None else _record(row)

    def list_all(self) -> list[KeyRecord]:
        """All keys, oldest first, revoked ones too."""
        return [_record(row) for row in self._conn.execute(_query().order_by(api_keys.c.id))]

    def revoke(self, key_id: str) -> None:
        """Revoke the key for good; NotFound if there is no such key."""
        statement = (
            sa.update(api_keys)
            .where(api_keys.c.id == key_id)
            .values(revoked_at=sa.func.coalesce(api_keys.c.revoked_at, self._uow.now))
        )
        if self._conn.execute(statement).rowcount == 0:
            raise NotFound(f"there is no key {key_id[:80]!r}; `ondol keys ls` lists them")

    def has_keys(self) -> bool:
        """Whether a valid key exists."""
        query = sa.select(api_keys.c.id).where(api_keys.c.revoked_at.is_(None)).limit(1)
        return self._conn.execute(query).scalar() is not None


def digest(secret: str) -> str:
    """The form in which a key is stored."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _projects() -> sa.Select[Any]:
    rules = (projects.c.weight, projects.c.max_queued_jobs, projects.c.max_queued_tokens)
    return sa.select(projects.c.id, projects.c.name, *rules)


def _query() -> sa.Select[Any]:
    return sa.select(api_keys, projects.c.name.label("project")).select_from(
        api_keys.join(projects, api_keys.c.project_id == projects.c.id)
    )


def _record(row: Row[Any]) -> KeyRecord:
    return KeyRecord(row.id, row.project_id, row.project, row.name, row.is_admin, row.created_at, row.revoked_at)
