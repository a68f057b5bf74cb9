"""Aliases of models: movable names for versions, moved by compare-and-set, each move with its row of history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Row

from ondol.contract.errors import AliasMoved, InvalidPayload, ModelNotFound
from ondol.contract.ids import new_id
from ondol.contract.model_ref import ModelRef, check_model_name
from ondol.sql.tables import alias_history, aliases, models, versions

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork

MAX_REASON_CHARS = 256
Expected = int | None | Literal["any"]
"""The version number that an alias must point to now; None: there must be no such alias; `any`: whatever it is."""

_now, _before = versions.alias("now"), versions.alias("before")


@dataclass(frozen=True, slots=True)
class AliasRecord:
    """Where an alias points now. `is_moved`: this very request moved it; it may have pointed there before."""

    name: str
    version_id: str
    number: int
    updated_at: float
    is_moved: bool = False


@dataclass(frozen=True, slots=True)
class AliasMove:
    """One row of history: what the alias pointed to from then on (None: deleted) and before (None: it was new)."""

    id: str
    project_id: str
    model: str
    alias: str
    version_id: str | None
    number: int | None
    manifest_digest: str | None
    previous_number: int | None
    previous_digest: str | None
    created_at: float
    reason: str


class AliasRepository:
    """Aliases of a project's models. Every change locks the model's row, so that changes come one after the other."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn

    def set_alias(
        self,
        project_id: str,
        name: str,
        alias: str,
        version_number: int,
        *,
        expected: Expected = "any",
        reason: str = "",
    ) -> AliasRecord:
        """Let the alias of the model `name` point to a version, if it points to `expected` now.

        AliasMoved says where it points instead. An alias that points to the wanted version already is left as it is,
        whatever was expected, so that a repeated request is answered like the first. ModelNotFound.
        """
        check_model_name(alias, param="alias")
        _check_reason(reason)
        model_id = self._locked_model(project_id, name)
        wanted = self._live_version(model_id, ModelRef(name, version_number))
        current = self._alias(model_id, alias)
        if current is not None and current.number == version_number:
            return current
        _check_expected(name, alias, current, expected)
        self._point(model_id, alias, wanted, current=current, reason=reason)
        return AliasRecord(alias, wanted, version_number, self._uow.now, is_moved=True)

    def delete_alias(
        self, project_id: str, name: str, alias: str, *, expected: Expected = "any", reason: str = ""
    ) -> None:
        """Remove the alias, if it points to `expected` now; its history stays. ModelNotFound if there is none."""
        check_model_name(alias, param="alias")
        _check_reason(reason)
        model_id = self._locked_model(project_id, name)
        current = self._alias(model_id, alias)
        if current is None:
            raise ModelNotFound(f"model {name!r} has no alias {alias!r}", param="alias")
        _check_expected(name, alias, current, expected)
        self._conn.execute(sa.delete(aliases).where(aliases.c.model_id == model_id, aliases.c.name == alias))
        self._record_move(model_id, alias, None, current.version_id, reason)

    def alias_target(self, project_id: str, name: str, alias: str) -> str | None:
        """The id of the version that the alias points to now; None if there is no such alias or model."""
        query = (
            sa.select(aliases.c.version_id)
            .join_from(aliases, models, aliases.c.model_id == models.c.id)
            .where(models.c.project_id == project_id, models.c.name == name, aliases.c.name == alias)
        )
        found: str | None = self._conn.execute(query).scalar()
        return found

    def list_aliases(self, project_id: str, name: str) -> list[AliasRecord]:
        """All aliases of the model, by name; ModelNotFound if there is no such model."""
        query = _aliases().where(aliases.c.model_id == self._model(project_id, name)).order_by(aliases.c.name)
        return [AliasRecord(*row) for row in self._conn.execute(query)]

    def alias_history(
        self, project_id: str, name: str, alias: str | None = None, *, limit: int = 100
    ) -> list[AliasMove]:
        """The latest moves of the model's aliases (or of one of them), newest first. ModelNotFound."""
        query = _moves().where(alias_history.c.model_id == self._model(project_id, name))
        if alias is not None:
            query = query.where(alias_history.c.name == alias)
        query = query.order_by(alias_history.c.created_at.desc(), alias_history.c.id.desc()).limit(limit)
        return [_move(row) for row in self._conn.execute(query)]

    def alias_moves_since(self, created_at: float) -> list[AliasMove]:
        """All moves of all projects after that time of the database's clock, oldest first.

        A move becomes visible with its commit, so one may appear that is older than others seen before.
        """
        query = _moves().where(alias_history.c.created_at > created_at)
        query = query.order_by(alias_history.c.created_at, alias_history.c.id)
        return [_move(row) for row in self._conn.execute(query)]

    def is_aliased(self, manifest_digest: str) -> bool:
        """Whether an alias of any model points to a version with these files."""
        wanted = sa.and_(aliases.c.version_id == versions.c.id, versions.c.manifest_digest == manifest_digest)
        return bool(self._conn.execute(sa.select(sa.exists().where(wanted))).scalar())

    def _model(self, project_id: str, name: str) -> str:
        query = sa.select(models.c.id).where(models.c.project_id == project_id, models.c.name == name)
        return self._found(name, self._conn.execute(query).scalar())

    def _locked_model(self, project_id: str, name: str) -> str:
        query = sa.select(models.c.id).where(models.c.project_id == project_id, models.c.name == name)
        if not self._uow.is_sqlite:  # there, one writer at a time is the rule
            query = query.with_for_update()
        return self._found(name, self._conn.execute(query).scalar())

    @staticmethod
    def _found(name: str, model_id: str | None) -> str:
        if model_id is None:
            raise ModelNotFound(
                f"there is no model {name!r} in this project; `ondol models ls` lists what there is", param="model"
            )
        return model_id

    def _live_version(self, model_id: str, ref: ModelRef) -> str:
        query = sa.select(versions.c.id).where(
            versions.c.model_id == model_id, versions.c.number == ref.number, versions.c.deleted_at.is_(None)
        )
        version_id: str | None = self._conn.execute(query).scalar()
        if version_id is None:
            raise ModelNotFound(f"there is no version {str(ref)!r} in this project", param="version")
        return version_id

    def _alias(self, model_id: str, alias: str) -> AliasRecord | None:
        query = _aliases().where(aliases.c.model_id == model_id, aliases.c.name == alias)
        row = self._conn.execute(query).one_or_none()
        return None if row is None else AliasRecord(*row)

    def _point(self, model_id: str, alias: str, version_id: str, *, current: AliasRecord | None, reason: str) -> None:
        """Move or make the alias; the model's row is locked by this transaction."""
        now = self._uow.now
        if current is None:
            row = {"model_id": model_id, "name": alias, "version_id": version_id, "updated_at": now}
            self._conn.execute(sa.insert(aliases), [row])
        else:
            self._conn.execute(
                sa.update(aliases)
                .where(aliases.c.model_id == model_id, aliases.c.name == alias)
                .values(version_id=version_id, updated_at=now)
            )
        self._record_move(model_id, alias, version_id, current.version_id if current else None, reason)

    def _record_move(
        self, model_id: str, alias: str, version_id: str | None, previous_id: str | None, reason: str
    ) -> None:
        entry: dict[str, Any] = {
            "id": new_id("ali"),
            "model_id": model_id,
            "name": alias,
            "version_id": version_id,
            "previous_version_id": previous_id,
            "created_at": self._uow.now,
            "reason": reason[:MAX_REASON_CHARS],
        }
        self._conn.execute(sa.insert(alias_history), [entry])


def _check_reason(reason: str) -> None:
    if "\0" in reason:  # which PostgreSQL takes in no text
        raise InvalidPayload("a reason is text without NUL characters", param="reason")


def _check_expected(name: str, alias: str, current: AliasRecord | None, expected: Expected) -> None:
    points_to = current.number if current is not None else None
    if expected == "any" or expected == points_to:
        return
    there = f"points to version {points_to}" if points_to is not None else "does not exist"
    wanted = f"to point to version {expected}" if expected is not None else "not to exist"
    raise AliasMoved(f"alias {name}@{alias} {there}, and was expected {wanted}; look again", points_to=points_to)


def _aliases() -> sa.Select[Any]:
    return sa.select(aliases.c.name, aliases.c.version_id, versions.c.number, aliases.c.updated_at).join_from(
        aliases, versions, aliases.c.version_id == versions.c.id
    )


def _moves() -> sa.Select[Any]:
    source = (
        alias_history.join(models, alias_history.c.model_id == models.c.id)
        .outerjoin(_now, alias_history.c.version_id == _now.c.id)
        .outerjoin(_before, alias_history.c.previous_version_id == _before.c.id)
    )
    return sa.select(
        alias_history.c.id,
        models.c.project_id,
        models.c.name.label("model"),
        alias_history.c.name.label("alias"),
        alias_history.c.version_id,
        _now.c.number,
        _now.c.manifest_digest,
        _before.c.number.label("previous_number"),
        _before.c.manifest_digest.label("previous_digest"),
        alias_history.c.created_at,
        alias_history.c.reason,
    ).select_from(source)


def _move(row: Row[Any]) -> AliasMove:
    return AliasMove(**row._mapping)
