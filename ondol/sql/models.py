"""Models and their versions, and what `dtype: auto` was resolved to; aliases are in `ondol/sql/aliases.py`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Row

from ondol.contract.errors import ModelNotFound, VersionInUse
from ondol.contract.ids import new_id
from ondol.contract.model_ref import DEFAULT_ALIAS, ModelRef, check_model_name
from ondol.sql.aliases import AliasRepository
from ondol.sql.records import DtypeRecord, JsonObject, VersionRecord
from ondol.sql.tables import aliases, models, publish_intents, version_dtypes, versions


@dataclass(frozen=True, slots=True)
class Published:
    """A new version, and what became of the alias that it was published for.

    `alias_points_to` is the reference (`name:3`) that the alias names now; None without an alias. `is_alias_moved` is
    False when somebody else had moved the alias since the caller looked: it is left where it is.
    """

    version: VersionRecord
    alias: str | None
    is_alias_moved: bool
    alias_points_to: str | None


class ModelRepository(AliasRepository):
    """Published versions. Their files are in the model store, named by the manifest digest."""

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
        return self._records([row])[0]

    def by_id(self, version_id: str) -> VersionRecord:
        """The version with this id, or ModelNotFound.

        A deleted one too: jobs that were accepted with it, and workers that serve these, finish with it.
        """
        row = self._conn.execute(_query(with_deleted=True).where(versions.c.id == version_id)).one_or_none()
        if row is None:
            raise ModelNotFound("the model version no longer exists", param="model")
        return self._records([row])[0]

    def list_versions(self, project_id: str, name: str | None = None) -> list[VersionRecord]:
        """All versions of the project (or of one model), by name and number."""
        query = _query().where(models.c.project_id == project_id).order_by(models.c.name, versions.c.number)
        if name is not None:
            query = query.where(models.c.name == name)
        return self._records(self._conn.execute(query).all())

    def delete_version(self, project_id: str, name: str, number: int) -> None:
        """Make the version unknown to new requests; its number is never given again.

        VersionInUse while an alias points to it; ModelNotFound.
        """
        model_id = self._locked_model(project_id, name)
        version_id = self._live_version(model_id, ModelRef(name, number))
        names = self._alias_names([model_id]).get(version_id)
        if names:
            shown = ", ".join(names)
            raise VersionInUse(
                f"{name}:{number} has the alias {shown}; move or delete it first (`ondol models alias`)",
                aliases=tuple(names),
            )
        self._conn.execute(sa.update(versions).where(versions.c.id == version_id).values(deleted_at=self._uow.now))

    def intend(self, manifest_digest: str) -> None:
        """A version of these files is about to be stored; if it is never recorded, they may be collected later on."""
        statement = self._insert(publish_intents).values(manifest_digest=manifest_digest, created_at=self._uow.now)
        self._conn.execute(
            statement.on_conflict_do_update(index_elements=["manifest_digest"], set_={"created_at": self._uow.now})
        )

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
        base_version_id: str | None = None,
        alias: str | None = None,
        alias_seen: str | None = None,
    ) -> Published:
        """Number and record a version whose files are in the store; the first one also gets the alias `default`.

        `alias` is moved to it only if it still points to the version `alias_seen` (None: there was no such alias).
        Numbers of one model are dense, also when several publish at once.
        """
        if alias is not None:
            check_model_name(alias, param="alias")
        model_id = self._make_model(project_id, name)
        number = self._last_number(model_id) + 1
        is_first = not self.list_versions(project_id, name)
        version_id = new_id("ver")
        row: dict[str, Any] = {
            "id": version_id,
            "model_id": model_id,
            "number": number,
            "task": task,
            "manifest_digest": manifest_digest,
            "size_bytes": size_bytes,
            "spec": spec,
            "base_version_id": base_version_id,
            "job_id": job_id,
            "attempt": attempt,
            "lineage": lineage,
            "created_at": self._uow.now,
        }
        self._conn.execute(sa.insert(versions), [row])
        self._conn.execute(sa.delete(publish_intents).where(publish_intents.c.manifest_digest == manifest_digest))
        is_moved = alias is not None and self._move_if_seen(model_id, alias, version_id, alias_seen)
        if is_first and self._alias(model_id, DEFAULT_ALIAS) is None:
            self._point(model_id, DEFAULT_ALIAS, version_id, current=None, reason="first version")
        return self._published(self.by_id(version_id), alias, is_alias_moved=is_moved)

    def published_by(self, job_id: str, attempt: int, *, alias: str | None = None) -> Published | None:
        """What this attempt has published already, by a commit whose answer was lost; None when it has not."""
        mine = (versions.c.job_id == job_id, versions.c.attempt == attempt)
        version_id = self._conn.execute(sa.select(versions.c.id).where(*mine)).scalar_one_or_none()
        if version_id is None:
            return None
        version = self.by_id(version_id)
        return self._published(version, alias, is_alias_moved=alias in version.aliases)

    def resolved_dtype(self, manifest_digest: str, device_kind: str, engine: str = "torch") -> DtypeRecord | None:
        """What the fidelity check found for these files by this engine on this kind of device, if it was done."""
        query = sa.select(version_dtypes).where(
            version_dtypes.c.manifest_digest == manifest_digest,
            version_dtypes.c.device_kind == device_kind,
            version_dtypes.c.engine == engine,
        )
        row = self._conn.execute(query).one_or_none()
        return None if row is None else _dtype_record(row)

    def resolved_dtypes(self, project_id: str, name: str | None = None) -> list[DtypeRecord]:
        """What was found for all versions of the project (or of one model), on all kinds of devices."""
        digests = (
            sa.select(versions.c.manifest_digest)
            .join_from(versions, models, versions.c.model_id == models.c.id)
            .where(models.c.project_id == project_id)
        )
        if name is not None:
            digests = digests.where(models.c.name == name)
        query = sa.select(version_dtypes).where(version_dtypes.c.manifest_digest.in_(digests))
        return [_dtype_record(row) for row in self._conn.execute(query)]

    def record_dtype(self, found: DtypeRecord) -> DtypeRecord:
        """Keep the outcome of a fidelity check; the first one wins, so that results stay reproducible."""
        row = {
            "manifest_digest": found.manifest_digest,
            "device_kind": found.device_kind,
            "engine": found.engine,
            "dtype": found.dtype,
            "fidelity": found.fidelity,
            "is_packed": found.is_packed,
            "created_at": self._uow.now,
        }
        self._conn.execute(self._insert(version_dtypes).values(**row).on_conflict_do_nothing())
        return self.resolved_dtype(found.manifest_digest, found.device_kind, found.engine) or found

    def _make_model(self, project_id: str, name: str) -> str:
        """The model's id, its row made if need be, and locked; waits for another transaction that makes it now."""
        row = {"id": new_id("mdl"), "project_id": project_id, "name": name, "created_at": self._uow.now}
        self._conn.execute(self._insert(models).values(**row).on_conflict_do_nothing())
        return self._locked_model(project_id, name)

    def _insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        return sqlite.insert(table) if self._uow.is_sqlite else postgresql.insert(table)

    def _last_number(self, model_id: str) -> int:
        """The highest number that was ever given, those of deleted versions too."""
        query = sa.select(sa.func.max(versions.c.number)).where(versions.c.model_id == model_id)
        return self._conn.execute(query).scalar() or 0

    def _published(self, version: VersionRecord, alias: str | None, *, is_alias_moved: bool) -> Published:
        points_to = self._alias(version.model_id, alias) if alias is not None else None
        name = None if points_to is None else f"{version.name}:{points_to.number}"
        return Published(version=version, alias=alias, is_alias_moved=is_alias_moved, alias_points_to=name)

    def _move_if_seen(self, model_id: str, alias: str, version_id: str, alias_seen: str | None) -> bool:
        current = self._alias(model_id, alias)
        if (current.version_id if current is not None else None) != alias_seen:
            return False
        self._point(model_id, alias, version_id, current=current, reason="published")
        return True

    def _records(self, rows: Sequence[Row[Any]]) -> list[VersionRecord]:
        """Records of `_query` rows, with the aliases of all of them read at once."""
        names = self._alias_names({row.model_id for row in rows}) if rows else {}
        return [_record(row, names.get(row.id, ())) for row in rows]

    def _alias_names(self, model_ids: Collection[str]) -> dict[str, list[str]]:
        """Aliases of these models, by the id of the version that they point to."""
        query = sa.select(aliases.c.version_id, aliases.c.name).where(aliases.c.model_id.in_(model_ids))
        found: dict[str, list[str]] = {}
        for row in self._conn.execute(query.order_by(aliases.c.name)):
            found.setdefault(row.version_id, []).append(row.name)
        return found


def _record(row: Row[Any], names: Sequence[str]) -> VersionRecord:
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


def _dtype_record(row: Row[Any]) -> DtypeRecord:
    return DtypeRecord(row.manifest_digest, row.device_kind, row.engine, row.dtype, row.fidelity, row.is_packed)


def _query(*, with_deleted: bool = False) -> sa.Select[Any]:
    query = sa.select(versions, models.c.project_id, models.c.name).select_from(
        versions.join(models, versions.c.model_id == models.c.id)
    )
    return query if with_deleted else query.where(versions.c.deleted_at.is_(None))
