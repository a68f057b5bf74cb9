"""Attempts: claim, complete, fail, hand back, take back. Every write is fenced by (job, attempt, running)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState, Priority, Reason
from ondol.sql.records import ClaimedJob, Completion, Failure
from ondol.sql.tables import IS_TRAINING, attempts, job_inputs, jobs, messages, results, sessions

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork

MAX_COUNTED_LOSSES = 3
LAPSES_BEFORE_ALONE = 3

_CLAIMED = (
    jobs.c.id,
    jobs.c.attempt,
    jobs.c.project_id,
    jobs.c.kind,
    jobs.c.priority,
    jobs.c.version_id,
    jobs.c.model_ref,
    jobs.c.options,
    jobs.c.num_inputs,
    jobs.c.is_alone,
    jobs.c.num_losses,
    jobs.c.created_at,
    jobs.c.deadline_at,
    jobs.c.event_seq,
)


class AttemptRepository:
    """The life of attempts. A write that a newer attempt has overtaken changes nothing and says so."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn

    def claim(self, message_id: str, *, session_id: str, worker: str) -> list[ClaimedJob]:
        """Claim all jobs that were rung by the message and still wait; finished, cancelled or re-rung ones stay out.

        Nothing is claimed under a session that has ended or lapsed: a worker that was frozen between its own look at
        the lease and this transaction would take jobs that nobody ever takes back from it.
        """
        if not self._uow.sessions.hold(session_id):
            return []
        now = self._uow.now
        if not self._claim_message(message_id, session_id, now):
            return []
        statement = (
            sa.update(jobs)
            .where(jobs.c.message_id == message_id, jobs.c.state == JobState.QUEUED)
            .values(
                state=JobState.RUNNING,
                attempt=jobs.c.attempt + 1,
                session_id=session_id,
                started_at=now,
                event_seq=jobs.c.event_seq + 1,
            )
            .returning(*_CLAIMED)
        )
        returned: Sequence[Any] = self._conn.execute(statement).all()
        rows: list[Row[Any]] = sorted(returned, key=lambda row: str(row.id))
        if not rows and self._uow.is_retry:
            return self._claimed_before(message_id, session_id, now)
        if not rows:
            return []
        self._conn.execute(
            sa.insert(attempts),
            [
                {
                    "job_id": r.id,
                    "attempt": r.attempt,
                    "session_id": session_id,
                    "worker": worker,
                    "message_id": message_id,
                    "started_at": now,
                }
                for r in rows
            ],
        )
        self._uow.events.add_states(
            [(r.id, r.event_seq) for r in rows],
            before=JobState.QUEUED,
            after=JobState.RUNNING,
            reason=Reason.CLAIMED,
            attempt=[r.attempt for r in rows],
            worker=worker,
        )
        return self._with_payloads(rows, now)

    def held_by(self, session_id: str) -> list[tuple[str, int]]:
        """(job id, attempt) of everything that runs under the session."""
        query = sa.select(jobs.c.id, jobs.c.attempt).where(
            jobs.c.session_id == session_id, jobs.c.state == JobState.RUNNING
        )
        return [(row.id, row.attempt) for row in self._conn.execute(query)]

    def end_as(
        self, job_id: str, attempt: int, after: JobState, reason: Reason, *, outcome: str, worker: str | None = None
    ) -> bool:
        """Move one running attempt's job to `after` and close the attempt; False when it is stale."""
        rows = self._end([(job_id, attempt)], after=after, reason=reason, values={}, worker=worker)
        self._close_attempts([(r.id, r.attempt, outcome, None, None, None) for r in rows])
        return bool(rows)

    def lose(self, job_id: str, attempt: int, error: dict[str, Any], *, worker: str) -> bool:
        """The process of a running attempt died: queue the job again, or fail it at the third loss in a row."""
        rows = self._end(
            [(job_id, attempt)],
            after=JobState.QUEUED,
            reason=Reason.PROCESS_DIED,
            values={"num_losses": jobs.c.num_losses + 1, "num_lapses": jobs.c.num_lapses + 1},
            worker=worker,
        )
        self._close_attempts([(r.id, r.attempt, "lost", None, None, error) for r in rows])
        self._fail_lost([row.id for row in rows])
        return bool(rows)

    def close_attempt(self, job_id: str, attempt: int, outcome: str, error: dict[str, Any] | None = None) -> None:
        """Write down how an attempt ended whose job was moved already."""
        self._close_attempts([(job_id, attempt, outcome, None, None, error)])

    def complete(self, completions: Sequence[Completion], *, worker: str | None = None) -> list[str]:
        """Record results and `succeeded` in one go; the ids that were recorded (the others are stale)."""
        by_id = {done.job_id: done for done in completions}
        rows = self._end(
            [(d.job_id, d.attempt) for d in completions],
            after=JobState.SUCCEEDED,
            reason=Reason.COMPLETED,
            values={"finished_at": self._uow.now, "num_done": jobs.c.num_inputs},
            worker=worker,
        )
        if not rows:
            return []
        recorded = [by_id[row.id] for row in rows]
        self._conn.execute(sa.insert(results), [_result_row(done, self._uow.now) for done in recorded])
        self._close_attempts(
            [(d.job_id, d.attempt, "succeeded", d.tokens, d.timings, None) for d in recorded],
        )
        return [done.job_id for done in recorded]

    def fail(self, failures: Sequence[Failure], *, max_retries: int, worker: str | None = None) -> list[str]:
        """Record failures: queued again where a retry is due and left, else `failed`. The ids that were recorded."""
        recorded: list[str] = []
        for failure in sorted(failures, key=lambda f: f.job_id):
            recorded += self._fail_one(failure, max_retries, worker)
        return recorded

    def hand_back(self, held: Sequence[tuple[str, int]]) -> list[str]:
        """Queue again what a stopping worker holds; neither a loss nor a retry is counted."""
        rows = self._end(held, after=JobState.QUEUED, reason=Reason.HANDED_BACK, values={})
        self._close_attempts([(r.id, r.attempt, "handed_back", None, None, None) for r in rows])
        return [row.id for row in rows]

    def take_back(self, session_id: str) -> list[str]:
        """Queue again, or fail, everything that a lapsed session held, and forget its messages."""
        was_alone = sa.case((sa.or_(jobs.c.is_alone, IS_TRAINING), 1), else_=0)
        rows = self._end(
            self.held_by(session_id),
            after=JobState.QUEUED,
            reason=Reason.LAPSED,
            values={
                "num_losses": jobs.c.num_losses + was_alone,
                "num_lapses": jobs.c.num_lapses + 1,
                "is_alone": sa.or_(jobs.c.is_alone, jobs.c.num_lapses + 1 >= LAPSES_BEFORE_ALONE),
            },
        )
        self._close_attempts([(r.id, r.attempt, "lost", None, None, None) for r in rows])
        self._fail_lost([row.id for row in rows])
        checks = self._uow.training.take_back_checks(session_id)
        self._uow.training.release_devices(session_id)
        self._conn.execute(sa.delete(messages).where(messages.c.session_id == session_id))
        return [row.id for row in rows] + checks

    def take_back_forgotten(self) -> list[str]:
        """Queue again, or fail, what still runs under sessions that have ended; no regular way leads there."""
        ended = (
            sa.select(jobs.c.session_id)
            .join(sessions, sessions.c.id == jobs.c.session_id)
            .where(
                jobs.c.session_id.is_not(None),
                jobs.c.state.in_((JobState.RUNNING, JobState.VALIDATING_FILES)),
                sessions.c.ended_at.is_not(None),
            )
            .distinct()
        )
        taken: list[str] = []
        for row in self._conn.execute(ended).all():
            taken += self.take_back(row.session_id)
        return taken

    def _fail_lost(self, ids: Sequence[str]) -> None:
        if not ids:
            return
        error = {
            "code": "worker_lost",
            "message": f"the process died {MAX_COUNTED_LOSSES} times while it ran this job alone",
            "param": None,
        }
        statement = (
            sa.update(jobs)
            .where(jobs.c.id.in_(ids), jobs.c.state == JobState.QUEUED, jobs.c.num_losses >= MAX_COUNTED_LOSSES)
            .values(state=JobState.FAILED, finished_at=self._uow.now, error=error, event_seq=jobs.c.event_seq + 1)
            .returning(jobs.c.id, jobs.c.event_seq, jobs.c.attempt)
        )
        rows = self._conn.execute(statement).all()
        self._uow.events.add_states(
            [(r.id, r.event_seq) for r in rows],
            before=JobState.RUNNING,
            after=JobState.FAILED,
            reason=Reason.WORKER_LOST,
            attempt=[r.attempt for r in rows],
        )

    def _fail_one(self, failure: Failure, max_retries: int, worker: str | None) -> list[str]:
        now = self._uow.now
        error = failure.error
        rows: Sequence[Row[Any]] = []
        if failure.retry_after_s is not None:
            rows = self._end(
                [(failure.job_id, failure.attempt)],
                after=JobState.QUEUED,
                reason=Reason.RETRYABLE_ERROR,
                values={
                    "run_after": now + failure.retry_after_s,
                    "num_retries": jobs.c.num_retries + 1,
                    "num_losses": jobs.c.num_losses + failure.num_losses,
                },
                condition=jobs.c.num_retries < max_retries,
                worker=worker,
            )
        if not rows:
            rows = self._end(
                [(failure.job_id, failure.attempt)],
                after=JobState.FAILED,
                reason=Reason.FAILED,
                values={
                    "finished_at": now,
                    "error": error,
                    "num_losses": jobs.c.num_losses + failure.num_losses,
                },
                worker=worker,
            )
        self._close_attempts([(r.id, r.attempt, "failed", None, failure.timings, error) for r in rows])
        return [row.id for row in rows]

    def _end(
        self,
        pairs: Sequence[tuple[str, int]],
        *,
        after: JobState,
        reason: Reason,
        values: dict[str, Any],
        condition: sa.ColumnElement[bool] | None = None,
        worker: str | None = None,
    ) -> Sequence[Row[Any]]:
        """The fence: only (job, attempt) pairs that are running now move to `after`."""
        if not pairs:
            return []
        statement = (
            sa.update(jobs)
            .where(sa.tuple_(jobs.c.id, jobs.c.attempt).in_(sorted(pairs)), jobs.c.state == JobState.RUNNING)
            .values(state=after, event_seq=jobs.c.event_seq + 1, message_id=None, session_id=None, **values)
            .returning(jobs.c.id, jobs.c.attempt, jobs.c.event_seq)
        )
        if condition is not None:
            statement = statement.where(condition)
        rows = self._conn.execute(statement).all()
        self._uow.events.add_states(
            [(r.id, r.event_seq) for r in rows],
            before=JobState.RUNNING,
            after=after,
            reason=reason,
            attempt=[r.attempt for r in rows],
            worker=worker,
        )
        return rows

    def _close_attempts(
        self, ended: Sequence[tuple[str, int, str, int | None, dict[str, Any] | None, dict[str, Any] | None]]
    ) -> None:
        if not ended:
            return
        statement = (
            sa.update(attempts)
            .where(attempts.c.job_id == sa.bindparam("b_job"), attempts.c.attempt == sa.bindparam("b_attempt"))
            .values(
                finished_at=sa.bindparam("b_finished"),
                outcome=sa.bindparam("b_outcome"),
                tokens=sa.bindparam("b_tokens"),
                timings=sa.bindparam("b_timings", type_=attempts.c.timings.type),
                error=sa.bindparam("b_error", type_=attempts.c.error.type),
            )
        )
        rows = [
            {
                "b_job": job_id,
                "b_attempt": attempt,
                "b_finished": self._uow.now,
                "b_outcome": outcome,
                "b_tokens": tokens,
                "b_timings": timings,
                "b_error": error,
            }
            for job_id, attempt, outcome, tokens, timings, error in ended
        ]
        self._conn.execute(statement, rows)

    def _claim_message(self, message_id: str, session_id: str, now: float) -> bool:
        statement = (
            sa.update(messages)
            .where(
                messages.c.id == message_id,
                sa.or_(messages.c.claimed_at.is_(None), messages.c.session_id == session_id),
            )
            .values(claimed_at=now, session_id=session_id)
        )
        return self._conn.execute(statement).rowcount == 1

    def _claimed_before(self, message_id: str, session_id: str, now: float) -> list[ClaimedJob]:
        """What an earlier, unanswered commit of the same claim took (the connection broke behind it)."""
        query = sa.select(*_CLAIMED).where(
            jobs.c.message_id == message_id, jobs.c.session_id == session_id, jobs.c.state == JobState.RUNNING
        )
        found: Sequence[Any] = self._conn.execute(query).all()
        return self._with_payloads(sorted(found, key=lambda row: str(row.id)), now)

    def _with_payloads(self, rows: Sequence[Row[Any]], now: float) -> list[ClaimedJob]:
        query = sa.select(job_inputs.c.job_id, job_inputs.c.payload).where(
            job_inputs.c.job_id.in_([row.id for row in rows])
        )
        payloads = {row.job_id: bytes(row.payload) for row in self._conn.execute(query)}
        return [_claimed(row, payloads[row.id], now) for row in rows]


def _claimed(row: Row[Any], payload: bytes, now: float) -> ClaimedJob:
    return ClaimedJob(
        id=row.id,
        attempt=row.attempt,
        project_id=row.project_id,
        kind=JobKind(row.kind),
        priority=Priority(row.priority),
        version_id=row.version_id,
        model_ref=row.model_ref,
        options=row.options,
        payload=payload,
        num_inputs=row.num_inputs,
        is_alone=row.is_alone,
        num_losses=row.num_losses,
        created_at=row.created_at,
        claimed_at=now,
        deadline_at=row.deadline_at,
    )


def _result_row(done: Completion, now: float) -> dict[str, Any]:
    return {
        "job_id": done.job_id,
        "attempt": done.attempt,
        "created_at": now,
        "summary": done.summary,
        "size_bytes": done.size_bytes,
        "data": done.data,
        "blob_path": done.blob_path,
        "sha256": done.sha256,
    }
