"""Jobs: submitting, reading, cancelling, retrying, deleting. Attempts have a repository of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from ondol.contract.errors import Conflict, IllegalTransition, JobNotFound
from ondol.contract.kinds import JobKind
from ondol.contract.states import TERMINAL, JobState, Reason, sources_of
from ondol.sql.job_pages import EVERY_JOB, JobFilter
from ondol.sql.job_rows import JOB_COLUMNS, input_row, job_query, job_row, record_of, record_of_new, shard_row
from ondol.sql.many_rows import ManyRows
from ondol.sql.purging import Part
from ondol.sql.records import FreedBlobs, JobRecord, JsonObject, NewJob
from ondol.sql.shards import parents_of
from ondol.sql.tables import (
    IS_NOT_SHARDED,
    IS_QUEUED,
    IS_RUNG,
    IS_WAITING,
    IS_WHOLE,
    attempts,
    checkpoints,
    events,
    job_inputs,
    jobs,
    notices,
    results,
)

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork


_INSERT_JOBS = ManyRows(jobs, JOB_COLUMNS)
_INSERT_INPUTS = ManyRows(job_inputs, job_inputs.c.keys())


class JobRepository:
    """Jobs of all projects; whoever passes `project_id` sees that project's alone, and never shards."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn

    def add_all(self, new: Sequence[NewJob]) -> list[JobRecord]:
        """Record jobs as queued, with their shards, each with its first event; nothing is rung here.

        Conflict if a job of the same project and task is recorded already.
        """
        if self._uow.is_retry:
            new = self._without_known(new)
        if not new:
            return []
        now = self._uow.now
        rows = [job_row(job, now) for job in new]
        inputs = [input_row(job.id, job) for job in new]
        shards = []
        for job, row in zip(new, rows, strict=True):
            for shard in job.shards:
                shards.append(shard_row(job.id, row, shard, now))
                inputs.append(input_row(shards[-1]["id"], shard))
        self.insert(rows + shards, inputs)
        for state in {job.state for job in new}:
            begun = [(row["id"], 1) for row in (*rows, *shards) if row["state"] == state]
            self._uow.events.add_states(begun, after=state, reason=Reason.ACCEPTED, attempt=None)
        return [record_of_new(job, row) for job, row in zip(new, rows, strict=True)]

    def insert(self, rows: Sequence[JsonObject], inputs: Sequence[JsonObject]) -> None:
        """Write rows of jobs or shards and of their inputs as `job_rows` makes them; Conflict as in `add_all`."""
        try:
            _INSERT_JOBS.execute(self._conn, rows)
        except IntegrityError as exc:
            if any(row["task_id"] is not None for row in rows):
                raise Conflict("a job of this task is recorded already", code="task_already_recorded") from exc
            raise
        _INSERT_INPUTS.execute(self._conn, inputs)

    def get(self, job_id: str, project_id: str) -> JobRecord:
        """The job, or JobNotFound; JobGone if it was there once and its time was over."""
        found = self.get_many([job_id], project_id)
        if not found:
            self._uow.purging.check_job(job_id, project_id)
            raise JobNotFound(f"there is no job {job_id[:80]!r} in this project", param="id")
        return found[0]

    def get_many(self, ids: Sequence[str], project_id: str) -> list[JobRecord]:
        """Those of the jobs that exist in the project, in no particular order."""
        return self._records(job_query().where(jobs.c.id.in_(ids), jobs.c.project_id == project_id))

    def by_task(self, task_id: str, project_id: str) -> JobRecord | None:
        """The job that a Celery producer submitted as this task, if it is recorded."""
        found = self._records(job_query().where(jobs.c.task_id == task_id, jobs.c.project_id == project_id))
        return found[0] if found else None

    def states_of(self, ids: Sequence[str]) -> dict[str, tuple[JobState, int]]:
        """State and last event number of each job that exists."""
        query = sa.select(jobs.c.id, jobs.c.state, jobs.c.event_seq).where(jobs.c.id.in_(ids))
        return {row.id: (JobState(row.state), row.event_seq) for row in self._conn.execute(query)}

    def kinds_of(self, ids: Sequence[str]) -> dict[str, int]:
        """How many of the jobs are of each kind."""
        if not ids:
            return {}
        query = sa.select(jobs.c.kind, sa.func.count().label("num")).where(jobs.c.id.in_(ids)).group_by(jobs.c.kind)
        return {row.kind: int(row.num) for row in self._conn.execute(query)}

    def page(
        self,
        project_id: str,
        wanted: JobFilter = EVERY_JOB,
        *,
        after: str | None = None,
        down_to: str | None = None,
        limit: int = 20,
    ) -> tuple[list[JobRecord], bool]:
        """A page, newest first, beginning behind the job `after`; and whether there are more, down to `down_to`."""
        query = job_query().where(jobs.c.project_id == project_id, *wanted.conditions())
        if after is not None:
            query = query.where(jobs.c.id < after)
        if down_to is not None:
            query = query.where(jobs.c.id >= down_to)
        found = self._records(query.order_by(jobs.c.id.desc()).limit(limit + 1))
        return found[:limit], len(found) > limit

    def queue_position(self, job: JobRecord, *, at_most: int = 10_000) -> int:
        """How many queued jobs of the same class and project go before this one; at most `at_most` are looked at."""
        goes_before = sa.or_(
            jobs.c.run_after < job.run_after, sa.and_(jobs.c.run_after == job.run_after, jobs.c.id < job.id)
        )
        num = 0
        for part in (IS_WAITING, IS_RUNG):
            ahead = (
                sa.select(jobs.c.parent_id)
                .where(part, jobs.c.priority == job.priority, jobs.c.project_id == job.project_id, goes_before)
                .where(jobs.c.run_after <= job.run_after)
                .limit(at_most)
                .subquery()
            )
            num += int(self._conn.execute(sa.select(num_jobs(ahead.c.parent_id)).select_from(ahead)).scalar_one())
        return min(num, at_most)

    def payload(self, job_id: str) -> bytes:
        """The job's input as it was accepted, UTF-8 JSON."""
        query = sa.select(job_inputs.c.payload).where(job_inputs.c.job_id == job_id)
        return bytes(self._conn.execute(query).scalar_one())

    def cancel(self, job_id: str, project_id: str) -> JobRecord:
        """Cancel the job and its shards unless it has ended otherwise (IllegalTransition).

        A second cancel changes nothing.
        """
        job = self.get(job_id, project_id)
        if job.state is JobState.CANCELLED:
            return job
        now = self._uow.now
        holds_device = sa.and_(jobs.c.kind == JobKind.FINE_TUNE, jobs.c.session_id.is_not(None))
        values = {
            "finished_at": now,
            "device_released_at": sa.case((holds_device, sa.null()), else_=now),
            "pause_requested_at": None,
        }
        moved = self._move([job_id], after=JobState.CANCELLED, reason=Reason.CANCEL_REQUESTED, values=values)
        if not moved:
            now_is = self.get(job_id, project_id)
            if now_is.state is JobState.CANCELLED:
                return now_is
            raise IllegalTransition(f"job {job_id} has already {now_is.state}; it cannot be cancelled")
        self._conn.execute(
            sa.update(attempts)
            .where(attempts.c.job_id == job_id, attempts.c.finished_at.is_(None))
            .values(finished_at=self._uow.now, outcome="cancelled")
        )
        cancelled = self.get(job_id, project_id)
        if cancelled.is_sharded:  # asked now: it may have been planned since it was looked at
            self._uow.shards.cancel(job_id)
        return cancelled

    def retry(self, job_id: str, project_id: str) -> JobRecord:
        """Queue a failed job again, with a fresh budget of losses and retries; its history stays, and so do answers."""
        job = self.get(job_id, project_id)
        values = {
            "finished_at": None,
            "error": None,
            "num_losses": 0,
            "num_lapses": 0,
            "num_retries": 0,
            "is_alone": False,
            "run_after": self._uow.now,
            "deadline_at": None,
            "device_released_at": None,
            "pause_requested_at": None,
            "events_gone_at": None,
            "results_gone_at": None,  # it had none, and those of its next attempts have a time of their own
        }
        if job.state is not JobState.FAILED or not self._move(
            [job_id],
            after=JobState.QUEUED,
            reason=Reason.RETRY_REQUESTED,
            values=values,
            only_from=frozenset({JobState.FAILED}),
        ):
            state = self.get(job_id, project_id).state  # JobNotFound if it was deleted meanwhile
            raise IllegalTransition(f"job {job_id} is {state}; only a failed job can be retried")
        if job.kind is not JobKind.FINE_TUNE:  # those do not need them: they have files
            self._uow.purging.check_part(job_id, Part.INPUTS)  # asked now: nobody purges what is no longer ended
        if job.is_sharded:
            self._uow.shards.retry(job_id, values)
        return self.get(job_id, project_id)

    def expire_deadlines(self, *, limit: int = 1000) -> list[str]:
        """Fail queued jobs and shards whose deadline has passed; a sharded job fails with its last shard."""
        query = (
            sa.select(jobs.c.id)
            .where(IS_QUEUED, IS_NOT_SHARDED, jobs.c.deadline_at.is_not(None), jobs.c.deadline_at < self._uow.now)
            .order_by(jobs.c.id)
            .limit(limit)
        )
        late = [row.id for row in self._conn.execute(query)]
        error = {
            "code": "deadline_exceeded",
            "message": "the deadline passed while the job waited to run",
            "param": None,
        }
        return self._move(
            late,
            after=JobState.FAILED,
            reason=Reason.DEADLINE,
            values={"finished_at": self._uow.now, "error": error},
            only_from=frozenset({JobState.QUEUED}),
        )

    def delete(self, job_id: str, project_id: str) -> FreedBlobs:
        """Delete the job with its shards, inputs, results and events; the files in the store that are now free.

        IllegalTransition while the job is active: cancel it first.
        """
        if not self._uow.is_sqlite:  # a retry that comes now waits, and finds no job
            mine = sa.select(jobs.c.id).where(jobs.c.id == job_id, jobs.c.project_id == project_id, IS_WHOLE)
            self._conn.execute(mine.with_for_update()).all()
        job = self.get(job_id, project_id)
        if job.state not in TERMINAL:
            raise IllegalTransition(f"job {job_id} is {job.state}; cancel it before deleting it")
        freed = self._uow.shards.delete(job_id) if job.is_sharded else FreedBlobs((), ())
        blob = self._conn.execute(sa.select(results.c.blob_path).where(results.c.job_id == job_id)).scalar()
        for table in (events, attempts, results, job_inputs, checkpoints, notices):
            self._conn.execute(sa.delete(table).where(table.c.job_id == job_id))
        self._conn.execute(sa.delete(jobs).where(jobs.c.id == job_id))
        freed = freed if blob is None else FreedBlobs((*freed.results, blob), freed.inputs)
        garbage = [f"results/{path}" for path in freed.results] + [f"inputs/{path}" for path in freed.inputs]
        if job.kind is JobKind.FINE_TUNE:
            garbage.append(f"checkpoints/{job_id}")
        self._uow.purging.add_garbage(garbage)  # deleted at once by whoever asked, or else later
        return freed

    def _records(self, query: sa.Select[Any]) -> list[JobRecord]:
        rows = self._conn.execute(query).all()
        ended = {row.id: JobState(row.state) for row in rows if row.is_sharded and row.state in TERMINAL}
        tokens = self._uow.shards.tokens_of(ended) if ended else {}
        return [record_of(row, tokens) for row in rows]

    def _move(
        self,
        ids: Sequence[str],
        *,
        after: JobState,
        reason: Reason,
        values: dict[str, Any],
        only_from: frozenset[JobState] | None = None,
    ) -> list[str]:
        if not ids:
            return []
        sources = only_from or sources_of(after)
        self._uow.shards.lock_parents(parents_of(ids))
        query = sa.select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(ids)).order_by(jobs.c.id)
        before = dict(self._conn.execute(query if self._uow.is_sqlite else query.with_for_update()).all())
        statement = (
            sa.update(jobs)
            .where(jobs.c.id.in_(ids), jobs.c.state.in_(sources))
            .values(state=after, event_seq=jobs.c.event_seq + 1, message_id=None, session_id=None, **values)
            .returning(jobs.c.id, jobs.c.event_seq, jobs.c.attempt)
        )
        moved = sorted(self._conn.execute(statement).all(), key=lambda row: str(row.id))
        for state in sorted({before[row.id] for row in moved}):
            rows = [row for row in moved if before[row.id] == state]
            self._uow.events.add_states(
                [(row.id, row.event_seq) for row in rows],
                before=JobState(state),
                after=after,
                reason=reason,
                attempt=[row.attempt for row in rows],
            )
        return [row.id for row in moved]

    def _without_known(self, new: Sequence[NewJob]) -> list[NewJob]:
        query = sa.select(jobs.c.id).where(jobs.c.id.in_([job.id for job in new]))
        known = {row.id for row in self._conn.execute(query)}
        return [job for job in new if job.id not in known]


def num_jobs(parent_id: sa.ColumnElement[str | None]) -> sa.ColumnElement[int]:
    """How many jobs the rows belong to, of which this is the column `parent_id`: shards of one job are one job."""
    return sa.func.count(sa.case((parent_id.is_(None), 1))) + sa.func.count(parent_id.distinct())
