"""Jobs that OpenAI's batch routes show: pages of them, and the files that their results become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ondol.contract.states import TERMINAL, JobState
from ondol.sql.files import NewFile
from ondol.sql.records import JobRecord, JsonObject
from ondol.sql.tables import jobs

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork


class BatchRepository:
    """Jobs with a `batch`; whoever passes `project_id` sees that project's alone."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn

    def page(self, project_id: str, *, after: str | None = None, limit: int = 20) -> tuple[list[JobRecord], bool]:
        """A page, newest first, beginning behind the batch `after`; and whether there are more."""
        query = (
            sa.select(jobs.c.id)
            .where(jobs.c.project_id == project_id, jobs.c.batch.is_not(sa.null()))
            .order_by(jobs.c.id.desc())
            .limit(limit + 1)
        )
        if after is not None:
            query = query.where(jobs.c.id < after)
        ids = list(self._conn.execute(query).scalars())
        found = {job.id: job for job in self._uow.jobs.get_many(ids[:limit], project_id)}
        return [found[job_id] for job_id in ids if job_id in found], len(ids) > limit

    def without_files(self, *, limit: int, behind: str = "") -> list[JobRecord]:
        """Batches of all projects that have ended, and whose results may be in no files since; the oldest first.

        `behind`: the id of a job; only later ones.
        """
        written_at = jobs.c.batch["written_at"].as_float()
        # As an expression: SQLite would go through the primary key, all jobs that there ever were, for the order.
        oldest_first = sa.func.coalesce(jobs.c.id, sa.literal_column("''"))
        query = (
            sa.select(jobs.c.id, jobs.c.project_id)
            .where(jobs.c.batch.is_not(sa.null()), jobs.c.is_sharded, jobs.c.finished_at.is_not(None))
            .where(sa.or_(written_at.is_(None), written_at <= jobs.c.finished_at), oldest_first > behind)
            .order_by(oldest_first)
            .limit(limit)
        )
        by_project: dict[str, list[str]] = {}
        for row in self._conn.execute(query):
            by_project.setdefault(row.project_id, []).append(row.id)
        return [job for of, ids in by_project.items() for job in self._uow.jobs.get_many(ids, of)]

    def set_files(
        self, job_id: str, *, finished_at: float, changes: JsonObject, files: Sequence[NewFile]
    ) -> JsonObject | None:
        """Record the files that an ended job's result has become, and `changes` to its batch; the batch as it is then.

        Whoever comes second changes nothing. None: the job is gone, or did not end at `finished_at` any more, as after
        a retry.
        """
        query = sa.select(jobs.c.batch, jobs.c.state, jobs.c.finished_at).where(jobs.c.id == job_id)
        row = self._conn.execute(query if self._uow.is_sqlite else query.with_for_update()).one_or_none()
        if row is None or JobState(row.state) not in TERMINAL or row.finished_at != finished_at:
            return None
        batch: JsonObject = row.batch
        if batch.get("files_of") == finished_at:
            return batch
        known = self._uow.files.existing([file.id for file in files])
        for file in files:
            if file.id not in known:
                self._uow.files.add(file)
        batch = {**batch, **changes, "files_of": finished_at, "written_at": self._uow.now}
        self._conn.execute(sa.update(jobs).where(jobs.c.id == job_id).values(batch=batch))
        return batch
