"""Models, versions, aliases with their history, and what `dtype: auto` was resolved to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from ondol.contract.errors import ModelNotFound
from ondol.contract.ids import new_id
from ondol.contract.model_ref import DEFAULT_ALIAS, ModelRef
from ondol.sql.records import DtypeRecord, JsonObject, VersionRecord
from ondol.sql.tables import alias_history, aliases, models, version_dtypes, versions

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork


class ModelRepository:
    """Published versions. Their files are in the model store, named by the manifest digest."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn

    def resolve(self, ref: ModelRef, project_id: str) -> VersionRecord:
        """The version that `ref` means now, or ModelNotFound."""
        query = _query().where(models.c.project_id == project_id, models.c.name == ref.name)
        if ref.number is not None:
            query = query.where(versions.c.number == ref.number)
        else:
            wanted = sa.and_(
                aliases.c.model_id == models.c.id,
                aliases.c.name == (ref.alias or DEFAULT_ALIAS),
                aliases.c.version_id == versions.c.id,
            )
            query = query.where(sa.exists().where(wanted))
        row = self._conn.execute(query).one_or_none()
        if row is None:
            raise ModelNotFound(
                f"there is no model {str(ref)!r} in this project; `ondol models ls` lists what there is", param="model"
            )
        return self._record(row)

    def by_id(self, version_id: str) -> VersionRecord:
        """The version with this id, or ModelNotFound."""
        row = self._conn.execute(_query().where(versions.c.id == version_id)).one_or_none()
        if row is None:
            raise ModelNotFound("the model version no longer exists", param="model")
        return self._record(row)

    def list_versions(self, project_id: str) -> list[VersionRecord]:
        """All versions of the project, by name and number."""
        query = _query().where(models.c.project_id == project_id).order_by(models.c.name, versions.c.number)
        return [self._record(row) for row in self._conn.execute(query).all()]

    def publish(
        self,
        *,
        project_id: str,
        name: str,
        task: str,
        manifest_digest: str,
        size_bytes: int,
        spec: JsonObject,
        job_id: str | None,
        attempt: int | None,
        lineage: JsonObject,
    ) -> VersionRecord:
        """Number and record a version whose files are in the store; the first one also gets the alias `default`."""
        now = self._uow.now
        model_id = self._model_id(project_id, name, now)
        last = self._conn.execute(
            sa.select(sa.func.max(versions.c.number)).where(versions.c.model_id == model_id)
        ).scalar()
        version_id = new_id("ver")
        self._conn.execute(
            sa.insert(versions),
            [
                {
                    "id": version_id,
                    "model_id": model_id,
                    "number": (last or 0) + 1,
                    "task": task,
                    "manifest_digest": manifest_digest,
                    "size_bytes": size_bytes,
                    "spec": spec,
                    "job_id": job_id,
                    "attempt": attempt,
                    "lineage": lineage,
                    "created_at": now,
                }
            ],
        )
        if last is None:
            self._set_alias(model_id, DEFAULT_ALIAS, version_id, reason="first version")
        return self.by_id(version_id)

    def resolved_dtype(self, manifest_digest: str, device_kind: str) -> DtypeRecord | None:
        """What the fidelity check found for these files on this kind of device, if it was done."""
        query = sa.select(version_dtypes).where(
            version_dtypes.c.manifest_digest == manifest_digest, version_dtypes.c.device_kind == device_kind
        )
        row = self._conn.execute(query).one_or_none()
        if row is None:
            return None
        return DtypeRecord(row.manifest_digest, row.device_kind, row.engine, row.dtype, row.fidelity, row.is_packed)

    def record_dtype(self, found: DtypeRecord) -> DtypeRecord:
        """Keep the outcome of a fidelity check; the first one wins, so that results stay reproducible."""
        known = self.resolved_dtype(found.manifest_digest, found.device_kind)
        if known is not None:
            return known
        self._conn.execute(
            sa.insert(version_dtypes),
            [
                {
                    "manifest_digest": found.manifest_digest,
                    "device_kind": found.device_kind,
                    "engine": found.engine,
                    "dtype": found.dtype,
                    "fidelity": found.fidelity,
                    "is_packed": found.is_packed,
                    "created_at": self._uow.now,
                }
            ],
        )
        return found

    def _model_id(self, project_id: str, name: str, now: float) -> str:
        query = sa.select(models.c.id).where(models.c.project_id == project_id, models.c.name == name)
        if not self._uow.is_sqlite:
            query = query.with_for_update()  # two publishes of one model take numbers one after the other
        model_id = self._conn.execute(query).scalar()
        if model_id is None:
            model_id = new_id("mdl")
            row = {"id": model_id, "project_id": project_id, "name": name, "created_at": now}
            self._conn.execute(sa.insert(models), [row])
        return str(model_id)

    def _set_alias(self, model_id: str, name: str, version_id: str, *, reason: str) -> None:
        now = self._uow.now
        self._conn.execute(
            sa.insert(aliases),
            [{"model_id": model_id, "name": name, "version_id": version_id, "updated_at": now}],
        )
        entry: dict[str, Any] = {"id": new_id("ali"), "model_id": model_id, "name": name, "version_id": version_id}
        self._conn.execute(sa.insert(alias_history), [entry | {"created_at": now, "reason": reason}])

    def _aliases_of(self, version_ids: Sequence[str]) -> dict[str, list[str]]:
        query = sa.select(aliases.c.version_id, aliases.c.name).where(aliases.c.version_id.in_(version_ids))
        found: dict[str, list[str]] = {}
        for row in self._conn.execute(query.order_by(aliases.c.name)):
            found.setdefault(row.version_id, []).append(row.name)
        return found

    def _record(self, row: Row[Any]) -> VersionRecord:
        names = self._aliases_of([row.id]).get(row.id, [])
        return VersionRecord(
            id=row.id,
            model_id=row.model_id,
            project_id=row.project_id,
            name=row.name,
            number=row.number,
            task=row.task,
            manifest_digest=row.manifest_digest,
            size_bytes=row.size_bytes,
            spec=row.spec,
            aliases=tuple(names),
            job_id=row.job_id,
            lineage=row.lineage,
            created_at=row.created_at,
        )


def _query() -> sa.Select[Any]:
    return (
        sa.select(versions, models.c.project_id, models.c.name)
        .select_from(versions.join(models, versions.c.model_id == models.c.id))
        .where(versions.c.deleted_at.is_(None))
    )
