"""How much waits by project and class, how much has ended since, and what projects may have waiting at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ondol.contract.states import Priority
from ondol.sql.jobs import num_jobs
from ondol.sql.tables import IS_RUNG, IS_UNFINISHED_TRAINING, IS_WAITING, IS_WHOLE, jobs, projects

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork


@dataclass(frozen=True, slots=True)
class Amount:
    """Jobs, and their estimated tokens."""

    num_jobs: int = 0
    num_tokens: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.num_jobs + other.num_jobs, self.num_tokens + other.num_tokens)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.num_jobs - other.num_jobs, self.num_tokens - other.num_tokens)


@dataclass(frozen=True, slots=True)
class ProjectRules:
    """A project's weight, and how much of it may wait; None: what the settings say."""

    weight: float = 1.0
    max_queued_jobs: int | None = None
    max_queued_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Backlog:
    """One look, in one read transaction. `now` is the database's clock.

    A sharded job is one job as long as one of its shards is queued; its tokens leave with its shards, and are not
    counted again in `ended`, where it counts as a job. Fine-tunes wait for trainers: they are not among `queued`, but
    counted by project in `trainings`.
    """

    queued: Mapping[tuple[str, Priority], Amount]
    ended: Mapping[str, Amount]
    rules: Mapping[str, ProjectRules]
    now: float
    trainings: Mapping[str, int] = field(default_factory=dict)


def count_backlog(uow: UnitOfWork, *, window_s: float, since: float | None) -> Backlog:
    """Count what is queued, and by project what has ended after `since` (None: in the last `window_s` seconds)."""
    queued: dict[tuple[str, Priority], Amount] = {}
    for part in (IS_WAITING, IS_RUNG):  # a partial index each; one condition over both would read all finished jobs
        query = (
            sa.select(
                jobs.c.project_id,
                jobs.c.priority,
                num_jobs(jobs.c.parent_id).label("num"),
                sa.func.coalesce(sa.func.sum(jobs.c.estimated_tokens), 0).label("tokens"),
            )
            .where(part)
            .group_by(jobs.c.priority, jobs.c.project_id)
        )
        for row in uow.conn.execute(query):
            key = row.project_id, Priority(row.priority)
            queued[key] = queued.get(key, Amount()) + Amount(int(row.num), int(row.tokens))
    after = since if since is not None else uow.now - window_s
    return Backlog(queued, _ended(uow, after), _rules(uow), uow.now, _trainings(uow))


def _trainings(uow: UnitOfWork) -> dict[str, int]:
    """Fine-tunes by project that have not begun."""
    query = sa.select(jobs.c.project_id, sa.func.count().label("num")).where(IS_UNFINISHED_TRAINING)
    return {row.project_id: int(row.num) for row in uow.conn.execute(query.group_by(jobs.c.project_id))}


def _ended(uow: UnitOfWork, since: float) -> dict[str, Amount]:
    tokens = sa.case((jobs.c.is_sharded, 0), else_=jobs.c.estimated_tokens)
    # As an expression: SQLite would read the whole index of the column for its groups, with all jobs that ever ended.
    project_id = sa.func.coalesce(jobs.c.project_id, sa.literal_column("''"))
    query = (
        sa.select(project_id.label("project_id"), sa.func.count().label("num"), sa.func.sum(tokens).label("tokens"))
        .where(jobs.c.finished_at > since, IS_WHOLE)
        .group_by(project_id)
    )
    return {row.project_id: Amount(int(row.num), int(row.tokens or 0)) for row in uow.conn.execute(query)}


def _rules(uow: UnitOfWork) -> dict[str, ProjectRules]:
    """Rules of the projects that have any of their own."""
    columns = (projects.c.weight, projects.c.max_queued_jobs, projects.c.max_queued_tokens)
    query = sa.select(projects.c.id, *columns).where(
        sa.or_(projects.c.weight != 1.0, *(column.is_not(None) for column in columns[1:]))
    )
    return {
        row.id: ProjectRules(row.weight, row.max_queued_jobs, row.max_queued_tokens) for row in uow.conn.execute(query)
    }
