"""The real tables under a clock of the test's own: moves one at a time, and everything that they hold to compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa

from ondol.contract.ids import new_job_id
from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState, Priority
from ondol.sql.database import Database
from ondol.sql.records import Completion, NewJob
from ondol.sql.tables import attempts, events, jobs, messages, metadata, notices, results, sessions
from ondol.sql.unit_of_work import UnitOfWork

T = TypeVar("T")

_KEPT = frozenset({"alembic_version", "projects"})


class Tables:
    """A database that is emptied first. `now` is what every unit of work takes for the database's clock."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = 1_800_000_000.0
        database.write(_empty)
        self.project_id = database.write(lambda uow: uow.keys.ensure_project())

    def write(self, work: Callable[[UnitOfWork], T], *, is_retry: bool = False) -> T:
        """What `work` returned, committed at `now`; `is_retry`: as after a commit that nobody answered."""

        def timed(uow: UnitOfWork) -> T:
            vars(uow)["now"] = self.now
            uow.is_retry = uow.is_retry or is_retry
            return work(uow)

        return self.database.write(timed)

    def rows(self, table: sa.Table) -> list[Any]:
        """All rows of a table, by its primary key."""
        query = sa.select(table).order_by(*table.primary_key.columns)
        return list(self.database.read(lambda uow: uow.conn.execute(query).all()))

    def snapshot(self) -> dict[str, list[Any]]:
        """All rows of the tables that jobs live in, read in one transaction."""
        tables = (attempts, events, jobs, messages, notices, results, sessions)

        def read(uow: UnitOfWork) -> dict[str, list[Any]]:
            return {t.name: list(uow.conn.execute(sa.select(t).order_by(*t.primary_key.columns)).all()) for t in tables}

        return self.database.read(read)


def inference_job(
    project_id: str, priority: Priority, *, deadline_s: float | None, run_after: float | None, webhook: str | None
) -> NewJob:
    """A job of one text for any worker."""
    return NewJob(
        id=new_job_id(),
        project_id=project_id,
        kind=JobKind.EMBEDDING,
        priority=priority,
        payload=b'["warm"]',
        options={},
        num_inputs=1,
        estimated_tokens=8,
        deadline_s=deadline_s,
        run_after=run_after,
        webhook=webhook,
    )


def fine_tune(project_id: str, priority: Priority, *, webhook: str | None) -> NewJob:
    """A fine-tune whose files wait to be checked."""
    return NewJob(
        id=new_job_id(),
        project_id=project_id,
        kind=JobKind.FINE_TUNE,
        priority=priority,
        payload=b"null",
        options={},
        num_inputs=0,
        estimated_tokens=0,
        version_id="ver_base",
        model_ref="tiny:1",
        webhook=webhook,
        state=JobState.VALIDATING_FILES,
    )


def completion(job_id: str, attempt: int) -> Completion:
    """A result of four bytes that tell the attempt."""
    return Completion(job_id, attempt, {}, "0" * 64, 4, tokens=1, timings={}, data=attempt.to_bytes(4, "little"))


def _empty(uow: UnitOfWork) -> None:
    for table in reversed(metadata.sorted_tables):
        if table.name not in _KEPT:
            uow.conn.execute(sa.delete(table))
