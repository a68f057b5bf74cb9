"""Stored results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from ondol.sql.records import JsonObject, ResultRecord
from ondol.sql.tables import results

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork


class ResultRepository:
    """Reading results; they are written with the state they belong to (`AttemptRepository.complete`)."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._conn = uow.conn

    def get(self, job_id: str) -> ResultRecord | None:
        """The job's result, if it has one."""
        row = self._conn.execute(sa.select(results).where(results.c.job_id == job_id)).one_or_none()
        return None if row is None else result_of(row)

    def summaries(self, job_ids: Sequence[str]) -> dict[str, JsonObject]:
        """The summary of each of the jobs that has a result."""
        query = sa.select(results.c.job_id, results.c.summary).where(results.c.job_id.in_(job_ids))
        return {row.job_id: row.summary for row in self._conn.execute(query)}


def result_of(row: Row[Any]) -> ResultRecord:
    """The result of a row with the columns of `results`."""
    data = bytes(row.data) if row.data is not None else None
    return ResultRecord(row.job_id, row.attempt, row.summary, row.sha256, row.size_bytes, data, row.blob_path)
