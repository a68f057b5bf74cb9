"""Checkpoints of fine-tunes that are committed: their files are in the store, and a row says which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from ondol.sql.records import CheckpointRecord, JsonObject
from ondol.sql.tables import checkpoints

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork


class CheckpointRepository:
    """One row a job and step; that of a later attempt takes the place of an earlier one's."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn

    def add(
        self,
        job_id: str,
        attempt: int,
        *,
        step: int,
        manifest_digest: str,
        size_bytes: int,
        metrics: JsonObject,
        is_best: bool,
    ) -> bool:
        """Record a checkpoint whose files are in the store: progress, so losses count anew. False: stale attempt."""
        if not self._uow.training.made_progress(job_id, attempt):
            return False
        if is_best:
            self._conn.execute(sa.update(checkpoints).where(checkpoints.c.job_id == job_id).values(is_best=False))
        self._conn.execute(sa.delete(checkpoints).where(checkpoints.c.job_id == job_id, checkpoints.c.step == step))
        row = {
            "job_id": job_id,
            "step": step,
            "attempt": attempt,
            "manifest_digest": manifest_digest,
            "size_bytes": size_bytes,
            "metrics": metrics,
            "is_best": is_best,
            "created_at": self._uow.now,
        }
        self._conn.execute(sa.insert(checkpoints), [row])
        return True

    def of(self, job_id: str, *, with_deleted: bool = False) -> list[CheckpointRecord]:
        """Those of a job, newest first; those whose files are gone only on request."""
        query = sa.select(checkpoints).where(checkpoints.c.job_id == job_id).order_by(checkpoints.c.step.desc())
        if not with_deleted:
            query = query.where(checkpoints.c.deleted_at.is_(None))
        return [_checkpoint(row) for row in self._conn.execute(query)]

    def forget(self, record: CheckpointRecord) -> None:
        """Mark a checkpoint whose files are deleted, or turned out to be damaged; not another attempt's of its step."""
        self._conn.execute(
            sa.update(checkpoints)
            .where(
                checkpoints.c.job_id == record.job_id,
                checkpoints.c.step == record.step,
                checkpoints.c.attempt == record.attempt,
            )
            .values(deleted_at=self._uow.now)
        )


def _checkpoint(row: Row[Any]) -> CheckpointRecord:
    return CheckpointRecord(
        job_id=row.job_id,
        step=row.step,
        attempt=row.attempt,
        manifest_digest=row.manifest_digest,
        size_bytes=row.size_bytes,
        metrics=row.metrics,
        is_best=row.is_best,
        created_at=row.created_at,
    )
