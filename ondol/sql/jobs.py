"""Jobs: submitting, reading, cancelling, retrying, deleting. Attempts have a repository of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Row
from sqlalchemy.exc import IntegrityError

from ondol.contract.errors import Conflict, IllegalTransition, JobNotFound
from ondol.contract.kinds import JobKind
from ondol.contract.states import TERMINAL, JobState, Priority, Reason, sources_of
from ondol.sql.records import JobRecord, NewJob
from ondol.sql.tables import (
    IS_QUEUED,
    IS_RUNG,
    IS_WAITING,
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


class JobRepository:
    """Jobs of all projects; whoever passes `project_id` sees that project's alone."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn

    def add_all(self, new: Sequence[NewJob]) -> list[JobRecord]:
        """Record jobs as queued, each with its first event; nothing is rung here.

        Conflict if a job of the same project and task is recorded already.
        """
        if self._uow.is_retry:
            new = self._without_known(new)
        if not new:
            return []
        now = self._uow.now
        rows = [_job_row(job, now) for job in new]
        self._insert(rows)
        self._conn.execute(sa.insert(job_inputs), [{"job_id": job.id, "payload": job.payload} for job in new])
        for state in {job.state for job in new}:
            begun = [(job.id, 1) for job in new if job.state is state]
            self._uow.events.add_states(begun, after=state, reason=Reason.ACCEPTED, attempt=None)
        return [_record_of_new(job, row) for job, row in zip(new, rows, strict=True)]

    def get(self, job_id: str, project_id: str) -> JobRecord:
        """The job, or JobNotFound."""
        found = self.get_many([job_id], project_id)
        if not found:
            raise JobNotFound(f"there is no job {job_id[:80]!r} in this project", param="id")
        return found[0]

    def get_many(self, ids: Sequence[str], project_id: str) -> list[JobRecord]:
        """Those of the jobs that exist in the project, in no particular order."""
        query = _job_query().where(jobs.c.id.in_(ids), jobs.c.project_id == project_id)
        return [_record(row) for row in self._conn.execute(query)]

    def by_task(self, task_id: str, project_id: str) -> JobRecord | None:
        """The job that a Celery producer submitted as this task, if it is recorded."""
        query = _job_query().where(jobs.c.task_id == task_id, jobs.c.project_id == project_id)
        row = self._conn.execute(query).one_or_none()
        return None if row is None else _record(row)

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
        *,
        kind: JobKind | None = None,
        state: JobState | None = None,
        model_ref: str | None = None,
        created_after: float | None = None,
        metadata: Mapping[str, str] | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> tuple[list[JobRecord], bool]:
        """A page, newest first, beginning behind the job `after`; and whether there are more.

        `metadata`: only jobs that bear all of these; an empty mapping: only jobs that bear none.
        """
        query = _job_query().where(jobs.c.project_id == project_id).order_by(jobs.c.id.desc()).limit(limit + 1)
        if kind is not None:
            query = query.where(jobs.c.kind == kind)
        if state is not None:
            query = query.where(jobs.c.state == state)
        if model_ref is not None:
            query = query.where(
                sa.or_(jobs.c.model_ref == model_ref, jobs.c.model_ref.startswith(model_ref + ":", autoescape=True))
            )
        if created_after is not None:
            query = query.where(jobs.c.created_at > created_after)
        if metadata is not None:
            query = query.where(_bears(metadata))
        if after is not None:
            query = query.where(jobs.c.id < after)
        found = [_record(row) for row in self._conn.execute(query)]
        return found[:limit], len(found) > limit

    def queue_position(self, job: JobRecord, *, at_most: int = 10_000) -> int:
        """How many queued jobs of the same class go before this one, counted up to `at_most`."""
        goes_before = sa.or_(
            jobs.c.run_after < job.run_after, sa.and_(jobs.c.run_after == job.run_after, jobs.c.id < job.id)
        )
        num = 0
        for part in (IS_WAITING, IS_RUNG):
            ahead = (
                sa.select(jobs.c.id)
                .where(part, jobs.c.priority == job.priority, jobs.c.run_after <= job.run_after, goes_before)
                .limit(at_most)
                .subquery()
            )
            num += int(self._conn.execute(sa.select(sa.func.count()).select_from(ahead)).scalar_one())
        return min(num, at_most)

    def backlog(self) -> tuple[int, int]:
        """Jobs that are queued, and the sum of their estimated tokens."""
        num_jobs = num_tokens = 0
        for part in (IS_WAITING, IS_RUNG):  # a partial index each; one condition over both would read all finished jobs
            query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(jobs.c.estimated_tokens), 0))
            count, tokens = self._conn.execute(query.where(part)).one()
            num_jobs, num_tokens = num_jobs + int(count), num_tokens + int(tokens)
        return num_jobs, num_tokens

    def num_finished_since(self, since: float) -> int:
        """Jobs that ended after `since`: the measured drain rate's numerator."""
        query = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.finished_at > since)
        return int(self._conn.execute(query).scalar_one())

    def payload(self, job_id: str) -> bytes:
        """The job's input as it was accepted, UTF-8 JSON."""
        query = sa.select(job_inputs.c.payload).where(job_inputs.c.job_id == job_id)
        return bytes(self._conn.execute(query).scalar_one())

    def cancel(self, job_id: str, project_id: str) -> JobRecord:
        """Cancel the job unless it has ended otherwise (IllegalTransition); a second cancel changes nothing."""
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
        return self.get(job_id, project_id)

    def retry(self, job_id: str, project_id: str) -> JobRecord:
        """Queue a failed job again, with a fresh budget of losses and retries; its history stays."""
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
        }
        if job.state is not JobState.FAILED or not self._move(
            [job_id],
            after=JobState.QUEUED,
            reason=Reason.RETRY_REQUESTED,
            values=values,
            only_from=frozenset({JobState.FAILED}),
        ):
            raise IllegalTransition(f"job {job_id} is {job.state}; only a failed job can be retried")
        return self.get(job_id, project_id)

    def expire_deadlines(self, *, limit: int = 1000) -> list[str]:
        """Fail queued jobs whose deadline has passed."""
        query = (
            sa.select(jobs.c.id)
            .where(IS_QUEUED, jobs.c.deadline_at.is_not(None), jobs.c.deadline_at < self._uow.now)
            .order_by(jobs.c.id)
            .limit(limit)
        )
        late = [row.id for row in self._conn.execute(query)]
        error = {"code": "deadline_exceeded", "message": "the deadline passed before the job began", "param": None}
        return self._move(
            late,
            after=JobState.FAILED,
            reason=Reason.DEADLINE,
            values={"finished_at": self._uow.now, "error": error},
            only_from=frozenset({JobState.QUEUED}),
        )

    def delete(self, job_id: str, project_id: str) -> str | None:
        """Delete the job with inputs, result and events; answers the blob path that is now free, if any.

        IllegalTransition while the job is active: cancel it first.
        """
        job = self.get(job_id, project_id)
        if job.state not in TERMINAL:
            raise IllegalTransition(f"job {job_id} is {job.state}; cancel it before deleting it")
        blob = self._conn.execute(sa.select(results.c.blob_path).where(results.c.job_id == job_id)).scalar()
        for table in (events, attempts, results, job_inputs, checkpoints, notices):
            self._conn.execute(sa.delete(table).where(table.c.job_id == job_id))
        self._conn.execute(sa.delete(jobs).where(jobs.c.id == job_id))
        return blob

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
        before = dict(
            self._conn.execute(sa.select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(ids)).with_for_update()).all()
            if not self._uow.is_sqlite
            else self._conn.execute(sa.select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(ids))).all()
        )
        statement = (
            sa.update(jobs)
            .where(jobs.c.id.in_(ids), jobs.c.state.in_(sources))
            .values(state=after, event_seq=jobs.c.event_seq + 1, message_id=None, session_id=None, **values)
            .returning(jobs.c.id, jobs.c.event_seq, jobs.c.attempt)
        )
        moved = self._conn.execute(statement).all()
        for row in moved:
            self._uow.events.add_states(
                [(row.id, row.event_seq)],
                before=JobState(before[row.id]),
                after=after,
                reason=reason,
                attempt=row.attempt,
            )
        return [row.id for row in moved]

    def _insert(self, rows: list[dict[str, Any]]) -> None:
        try:
            self._conn.execute(sa.insert(jobs), rows)
        except IntegrityError as exc:
            if any(row["task_id"] is not None for row in rows):
                raise Conflict("a job of this task is recorded already", code="task_already_recorded") from exc
            raise

    def _without_known(self, new: Sequence[NewJob]) -> list[NewJob]:
        query = sa.select(jobs.c.id).where(jobs.c.id.in_([job.id for job in new]))
        known = {row.id for row in self._conn.execute(query)}
        return [job for job in new if job.id not in known]


def _job_row(job: NewJob, now: float) -> dict[str, Any]:
    return {
        "id": job.id,
        "project_id": job.project_id,
        "kind": job.kind.value,
        "state": job.state.value,
        "priority": job.priority.value,
        "version_id": job.version_id,
        "model_ref": job.model_ref,
        "options": job.options,
        "job_metadata": job.metadata,
        "num_inputs": job.num_inputs,
        "num_done": 0,
        "estimated_tokens": job.estimated_tokens,
        "created_at": now,
        "run_after": job.run_after if job.run_after is not None else now,
        "deadline_at": now + job.deadline_s if job.deadline_s is not None else None,
        "event_seq": 1,
        "task_id": job.task_id,
        "ignores_result": job.ignores_result,
        "webhook": job.webhook,
    }


def _record_of_new(job: NewJob, row: dict[str, Any]) -> JobRecord:
    return JobRecord(
        id=job.id,
        project_id=job.project_id,
        kind=job.kind,
        state=job.state,
        priority=job.priority,
        model_ref=job.model_ref,
        metadata=job.metadata,
        num_inputs=job.num_inputs,
        num_done=0,
        created_at=row["created_at"],
        run_after=row["run_after"],
        deadline_at=row["deadline_at"],
        started_at=None,
        finished_at=None,
        attempt=0,
        worker=None,
        tokens=None,
        timings=None,
        error=None,
        event_seq=1,
        task_id=job.task_id,
        webhook=job.webhook,
        options=job.options,
    )


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


def _job_query() -> sa.Select[Any]:
    latest = sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.attempt == jobs.c.attempt)
    return sa.select(
        jobs,
        attempts.c.worker,
        attempts.c.tokens,
        attempts.c.timings.label("attempt_timings"),
        attempts.c.message_id.label("attempt_message_id"),
    ).select_from(jobs.outerjoin(attempts, latest))


def _record(row: Row[Any]) -> JobRecord:
    return JobRecord(
        id=row.id,
        project_id=row.project_id,
        kind=JobKind(row.kind),
        state=JobState(row.state),
        priority=Priority(row.priority),
        model_ref=row.model_ref,
        metadata=row.job_metadata,
        num_inputs=row.num_inputs,
        num_done=row.num_done,
        created_at=row.created_at,
        run_after=row.run_after,
        deadline_at=row.deadline_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        attempt=row.attempt,
        worker=row.worker,
        tokens=row.tokens,
        timings=row.attempt_timings,
        error=row.error,
        event_seq=row.event_seq,
        resolved=row.resolved,
        pause_requested_at=row.pause_requested_at,
        device_released_at=row.device_released_at,
        task_id=row.task_id,
        webhook=row.webhook,
        message_id=row.attempt_message_id,
        options=row.options,
    )
