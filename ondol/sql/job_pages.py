"""Which of a project's jobs a page shows, and by which index each filter finds them.

A filter that no index answers is looked for in the project's jobs, newest first, a bounded number of them at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ondol.contract.ids import first_id, parent_of
from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState, Priority
from ondol.sql.tables import IS_CANCELLED, IS_FAILED, IS_RARE, IS_RUNG, IS_TRAINING, IS_WAITING, IS_WHOLE, jobs

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork

RARE_KINDS = frozenset({JobKind.FINE_TUNE, JobKind.IMPORT})
RARE_STATES = frozenset({JobState.PAUSED, JobState.VALIDATING_FILES})
"""Of fine-tunes alone."""
OPEN_STATES = frozenset({JobState.QUEUED, JobState.RUNNING})
_BY_INDEX = {JobState.FAILED: IS_FAILED, JobState.CANCELLED: IS_CANCELLED}
_CLOCKS_DIFFER_S = 3600.0
"""Ids are made by the clocks of the apis, and times by the database's: never so far apart."""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """What the jobs of a page have in common; None: whatever it is.

    `metadata`: jobs that bear all of these; an empty mapping: jobs that bear none.
    """

    kind: JobKind | None = None
    state: JobState | None = None
    model_ref: str | None = None
    created_after: float | None = None
    metadata: Mapping[str, str] | None = None

    @property
    def is_of_few(self) -> bool:
        """Whether an index leads to few others than the jobs that are asked for."""
        if self.kind in RARE_KINDS or self.state in RARE_STATES:
            return True
        asks_more = self.model_ref is not None or self.metadata is not None or self.kind is not None
        return not asks_more and (self.state is None or self.state in _BY_INDEX)

    @property
    def begins_at(self) -> str:
        """An id that sorts before those of all jobs that can be asked for."""
        return "" if self.created_after is None else first_id("job", self.created_after - _CLOCKS_DIFFER_S)

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """The filter in SQL, in the words of the indexes."""
        found: list[sa.ColumnElement[bool]] = []
        if self.kind in RARE_KINDS or self.state in RARE_STATES:
            found.append(IS_RARE)
        if self.kind is not None:
            found.append(jobs.c.kind == self.kind)
        if self.state is not None:
            found.append(_BY_INDEX.get(self.state, jobs.c.state == self.state))
        if self.model_ref is not None:
            versions = jobs.c.model_ref.startswith(self.model_ref + ":", autoescape=True)
            found.append(sa.or_(jobs.c.model_ref == self.model_ref, versions))
        if self.created_after is not None:
            found += [jobs.c.created_at > self.created_after, jobs.c.id >= self.begins_at]
        if self.metadata is not None:
            found.append(_bears(self.metadata))
        return found


EVERY_JOB = JobFilter()


def oldest_open(uow: UnitOfWork, project_id: str) -> str | None:
    """A job that is not younger than any of the project that is queued or runs; None: none is, nor does.

    Found by what is open, however much the project has ever had.
    """
    # As an expression: PostgreSQL would look for the least id by the primary key, among all that ever ended.
    oldest = sa.func.min(sa.func.coalesce(jobs.c.id, sa.literal_column("''")))
    parts = [sa.and_(IS_WAITING, jobs.c.priority == priority) for priority in Priority]
    parts += [IS_RUNG, jobs.c.session_id.is_not(None), sa.and_(IS_TRAINING, jobs.c.finished_at.is_(None))]
    of_project = sa.select(oldest.label("id")).where(jobs.c.project_id == project_id)
    query = sa.union_all(*(of_project.where(part) for part in parts))
    found = [parent_of(row.id) or str(row.id) for row in uow.conn.execute(query) if row.id is not None]
    return min(found, default=None)


def last_of_next(uow: UnitOfWork, project_id: str, num: int, *, after: str | None, down_to: str) -> str | None:
    """The last of the project's next `num` jobs, newest first, from behind `after` to `down_to`; None: it has fewer."""
    query = (
        sa.select(jobs.c.id)
        .where(jobs.c.project_id == project_id, IS_WHOLE, jobs.c.id >= down_to)
        .order_by(jobs.c.id.desc())
        .limit(1)
        .offset(num - 1)
    )
    if after is not None:
        query = query.where(jobs.c.id < after)
    return uow.conn.execute(query).scalar()


def _bears(metadata: Mapping[str, str]) -> sa.ColumnElement[bool]:
    """Which jobs bear this metadata; with none of it, those that bear nothing."""
    text = sa.cast(jobs.c.job_metadata, sa.Text)
    if not metadata:
        return text == "{}"
    # PostgreSQL cannot take a text out of JSON that holds U+0000: such a job is passed over, not everybody's failure.
    is_unreadable = text.contains("\\u0000", autoescape=True)
    return sa.and_(
        *(
            sa.case((is_unreadable, sa.null()), else_=jobs.c.job_metadata[key].as_string()) == value
            for key, value in metadata.items()
        )
    )
