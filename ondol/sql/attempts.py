"""Attempts: claim, complete, fail, hand back, take back. Every write is fenced by (job, attempt, running)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState, Priority, Reason
from ondol.sql.id_lists import id_list, is_listed
from ondol.sql.many_rows import ManyRows
from ondol.sql.notices import WANTS_NOTICE
from ondol.sql.records import ClaimedJob, Completion, Failure, InputBlob
from ondol.sql.shards import parents_of
from ondol.sql.tables import IS_TRAINING, attempts, job_inputs, jobs, messages, results, sessions

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork

MAX_COUNTED_LOSSES = 3
LAPSES_BEFORE_ALONE = 3
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_WORKER_LOST = {
    "code": "worker_lost",
    "message": f"the process died {MAX_COUNTED_LOSSES} times while it ran this job alone",
    "param": None,
}

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
    jobs.c.input_file_id,
)
_INSERT = ManyRows(attempts, ("job_id", "attempt", "session_id", "worker", "message_id", "started_at"))
_INSERT_RESULTS = ManyRows(results, results.c.keys())
_CLOSE = ManyRows(
    attempts,
    ("job_id", "attempt", "finished_at", "outcome", "tokens", "timings", "error"),
    keys=("job_id", "attempt"),
)
_PARENTS_OF_MESSAGE = (
    sa.select(sa.func.string_agg(jobs.c.parent_id.distinct(), sa.literal_column("','", sa.String)))
    .where(jobs.c.message_id == messages.c.id, jobs.c.parent_id.is_not(None))
    .scalar_subquery()
    .label("parents")
)
"""PostgreSQL: the jobs whose shards a message names, asked with the message itself; null for most messages."""

# Built once: SQLAlchemy takes longer to build a statement than the database to run it.
_NOW = sa.bindparam("b_now", type_=sa.Double)
_MESSAGE = sa.bindparam("b_message", type_=sa.String)
_SESSION = sa.bindparam("b_session", type_=sa.String)
_CLAIM_MESSAGE = (
    sa.update(messages)
    .where(messages.c.id == _MESSAGE, sa.or_(messages.c.claimed_at.is_(None), messages.c.session_id == _SESSION))
    .values(claimed_at=_NOW, session_id=_SESSION)
)
_CLAIM_MESSAGE_OF_SHARDS = _CLAIM_MESSAGE.returning(_PARENTS_OF_MESSAGE)
_CLAIM = (
    sa.update(jobs)
    .where(jobs.c.message_id == _MESSAGE, jobs.c.state == JobState.QUEUED)
    .values(
        state=JobState.RUNNING,
        attempt=jobs.c.attempt + 1,
        session_id=_SESSION,
        started_at=_NOW,
        event_seq=jobs.c.event_seq + 1,
    )
    .returning(*_CLAIMED)
)
_INPUTS_OF_MESSAGE = sa.select(job_inputs).where(
    job_inputs.c.job_id.in_(sa.select(jobs.c.id).where(jobs.c.message_id == _MESSAGE, jobs.c.session_id == _SESSION))
)


def _move(after: JobState, *conditions: sa.ColumnElement[bool], **values: Any) -> sa.Update:
    """The fence: the jobs that run now as this attempt move to `after`.

    A job that was cut into shards has no attempt that runs: it moves with its shards alone.
    """
    return (
        sa.update(jobs)
        .where(
            is_listed(jobs.c.id, "b_ids"),
            jobs.c.attempt == sa.bindparam("b_attempt"),
            jobs.c.state == JobState.RUNNING,
            sa.not_(jobs.c.is_sharded),
            *conditions,
        )
        .values(state=after, event_seq=jobs.c.event_seq + 1, message_id=None, session_id=None, **values)
        .returning(jobs.c.id, jobs.c.attempt, jobs.c.event_seq, *WANTS_NOTICE)
    )


_ADDED_LOSSES = jobs.c.num_losses + sa.bindparam("b_losses", type_=sa.Integer)
_SUCCEED = _move(JobState.SUCCEEDED, finished_at=_NOW, num_done=jobs.c.num_inputs)
_FAIL = _move(
    JobState.FAILED, finished_at=_NOW, error=sa.bindparam("b_error", type_=jobs.c.error.type), num_losses=_ADDED_LOSSES
)
_RETRY = _move(
    JobState.QUEUED,
    jobs.c.num_retries < sa.bindparam("b_max_retries"),
    run_after=sa.bindparam("b_run_after"),
    num_retries=jobs.c.num_retries + 1,
    num_losses=_ADDED_LOSSES,
)


def _move_lost(num_losses: sa.ColumnElement[int], **values: Any) -> sa.Update:
    """The process of these attempts died: one move, to `queued`, or to `failed` with what is then counted too much."""
    is_last = num_losses >= MAX_COUNTED_LOSSES
    error = sa.bindparam("b_error", type_=jobs.c.error.type)
    return (
        _move(
            JobState.QUEUED,
            num_losses=num_losses,
            num_lapses=jobs.c.num_lapses + 1,
            finished_at=sa.case((is_last, _NOW), else_=jobs.c.finished_at),
            error=sa.case((is_last, error), else_=jobs.c.error),
            **values,
        )
        .values(state=sa.case((is_last, JobState.FAILED.value), else_=JobState.QUEUED.value))
        .returning(jobs.c.state)
    )


_LOSE = _move_lost(jobs.c.num_losses + 1)
_TAKE_BACK = _move_lost(
    jobs.c.num_losses + sa.case((sa.or_(jobs.c.is_alone, IS_TRAINING), 1), else_=0),
    is_alone=sa.or_(jobs.c.is_alone, jobs.c.num_lapses + 1 >= LAPSES_BEFORE_ALONE),
)
_HAND_BACK = _move(JobState.QUEUED)


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
        returned: Sequence[Any] = self._conn.execute(
            _CLAIM, {"b_message": message_id, "b_session": session_id, "b_now": now}
        ).all()
        rows: list[Row[Any]] = sorted(returned, key=lambda row: str(row.id))
        if not rows and self._uow.is_retry:
            return self._claimed_before(message_id, session_id, now)
        if not rows:
            return []
        _INSERT.execute(
            self._conn,
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
        self._uow.shards.begin(parents_of(r.id for r in rows))
        return self._with_payloads(rows, message_id, session_id, now)

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
        rows = self._fence(_move(after), [(job_id, attempt)])
        self._close_attempts([(r.id, r.attempt, outcome, None, None, None) for r in rows])
        self._tell(rows, after=after, reason=reason, worker=worker)
        return bool(rows)

    def lose(self, job_id: str, attempt: int, error: dict[str, Any], *, worker: str) -> bool:
        """The process of a running attempt died: queue the job again, or fail it at the third loss in a row."""
        return bool(self._lost(_LOSE, [(job_id, attempt)], Reason.PROCESS_DIED, error=error, worker=worker))

    def close_attempt(self, job_id: str, attempt: int, outcome: str, error: dict[str, Any] | None = None) -> None:
        """Write down how an attempt ended whose job was moved already."""
        self._close_attempts([(job_id, attempt, outcome, None, None, error)])

    def complete(self, completions: Sequence[Completion], *, worker: str | None = None) -> list[str]:
        """Record results and `succeeded` in one go; the ids that were recorded (the others are stale)."""
        by_id = {done.job_id: done for done in completions}
        rows = self._fence(_SUCCEED, [(d.job_id, d.attempt) for d in completions], {"b_now": self._uow.now})
        if not rows:
            return []
        recorded = [by_id[row.id] for row in rows]
        _INSERT_RESULTS.execute(self._conn, [_result_row(done, self._uow.now) for done in recorded])
        self._close_attempts(
            [(d.job_id, d.attempt, "succeeded", d.tokens, d.timings, None) for d in recorded],
        )
        self._tell(rows, after=JobState.SUCCEEDED, reason=Reason.COMPLETED, worker=worker)
        return [done.job_id for done in recorded]

    def fail(self, failures: Sequence[Failure], *, max_retries: int, worker: str | None = None) -> list[str]:
        """Record failures: queued again where a retry is due and left, else `failed`. The ids that were recorded."""
        recorded: list[str] = []
        for failure in sorted(failures, key=lambda f: f.job_id):
            recorded += self._fail_one(failure, max_retries, worker)
        return recorded

    def hand_back(self, held: Sequence[tuple[str, int]]) -> list[str]:
        """Queue again what a stopping worker holds; neither a loss nor a retry is counted."""
        rows = self._fence(_HAND_BACK, held)
        self._close_attempts([(r.id, r.attempt, "handed_back", None, None, None) for r in rows])
        self._tell(rows, after=JobState.QUEUED, reason=Reason.HANDED_BACK)
        return [row.id for row in rows]

    def take_back(self, session_id: str) -> list[str]:
        """Queue again, or fail, everything that a lapsed session held, and forget its messages."""
        rows = self._lost(_TAKE_BACK, self.held_by(session_id), Reason.LAPSED)
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

    def _lost(
        self,
        move: sa.Update,
        pairs: Sequence[tuple[str, int]],
        reason: Reason,
        *,
        error: dict[str, Any] | None = None,
        worker: str | None = None,
    ) -> Sequence[Row[Any]]:
        """Run a `_move_lost`. `error`: of the attempts; what a job fails with is `worker_lost`, whatever the reason."""
        rows = self._fence(move, pairs, {"b_now": self._uow.now, "b_error": _WORKER_LOST})
        self._close_attempts([(r.id, r.attempt, "lost", None, None, error) for r in rows])
        failed = [row for row in rows if row.state == JobState.FAILED]
        queued = [row for row in rows if row.state != JobState.FAILED]
        self._tell(queued, after=JobState.QUEUED, reason=reason, worker=worker)
        self._tell(failed, after=JobState.FAILED, reason=Reason.WORKER_LOST, worker=worker)
        return rows

    def _fail_one(self, failure: Failure, max_retries: int, worker: str | None) -> list[str]:
        now, pair = self._uow.now, (failure.job_id, failure.attempt)
        after, reason = JobState.QUEUED, Reason.RETRYABLE_ERROR
        rows: Sequence[Row[Any]] = []
        given: dict[str, Any] = {"b_losses": failure.num_losses}
        if failure.retry_after_s is not None:
            again = {"b_run_after": now + failure.retry_after_s, "b_max_retries": max_retries}
            rows = self._fence(_RETRY, [pair], given | again)
        if not rows:
            after, reason = JobState.FAILED, Reason.FAILED
            rows = self._fence(_FAIL, [pair], given | {"b_now": now, "b_error": failure.error})
        self._close_attempts([(r.id, r.attempt, "failed", None, failure.timings, failure.error) for r in rows])
        self._tell(rows, after=after, reason=reason, worker=worker)
        return [row.id for row in rows]

    def _fence(
        self, move: sa.Update, pairs: Sequence[tuple[str, int]], given: Mapping[str, Any] = _NOTHING
    ) -> Sequence[Row[Any]]:
        """Run a `_move` for those (job, attempt) pairs that are running now. Say so with `_tell` at the end."""
        if not pairs:
            return []
        self._uow.shards.lock_parents(parents_of(job_id for job_id, _ in pairs))
        by_attempt: dict[int, list[str]] = {}
        for job_id, attempt in pairs:
            by_attempt.setdefault(attempt, []).append(job_id)
        rows: list[Row[Any]] = []
        for attempt, ids in sorted(by_attempt.items()):
            rows += self._conn.execute(move, {**given, "b_ids": id_list(self._conn, ids), "b_attempt": attempt})
        return rows

    def _tell(self, rows: Sequence[Row[Any]], *, after: JobState, reason: Reason, worker: str | None = None) -> None:
        """The events of a move, once all that belongs to it is written: the end of a shard may end its job."""
        self._uow.events.add_states(
            [(r.id, r.event_seq) for r in rows],
            before=JobState.RUNNING,
            after=after,
            reason=reason,
            attempt=[r.attempt for r in rows],
            worker=worker,
            ends=rows,
        )

    def _close_attempts(
        self, ended: Sequence[tuple[str, int, str, int | None, dict[str, Any] | None, dict[str, Any] | None]]
    ) -> None:
        if not ended:
            return
        rows = [
            {
                "job_id": job_id,
                "attempt": attempt,
                "finished_at": self._uow.now,
                "outcome": outcome,
                "tokens": tokens,
                "timings": timings,
                "error": error,
            }
            for job_id, attempt, outcome, tokens, timings, error in ended
        ]
        _CLOSE.execute(self._conn, rows)

    def _claim_message(self, message_id: str, session_id: str, now: float) -> bool:
        """Whether the message is this session's; the jobs whose shards it names are held from then on."""
        given = {"b_message": message_id, "b_session": session_id, "b_now": now}
        if self._uow.is_sqlite:  # one transaction at a time writes: nothing has to be held
            return self._conn.execute(_CLAIM_MESSAGE, given).rowcount == 1
        row = self._conn.execute(_CLAIM_MESSAGE_OF_SHARDS, given).one_or_none()
        if row is None:
            return False
        self._uow.shards.lock_parents(sorted(row.parents.split(",")) if row.parents else ())
        return True

    def _claimed_before(self, message_id: str, session_id: str, now: float) -> list[ClaimedJob]:
        """What an earlier, unanswered commit of the same claim took (the connection broke behind it)."""
        query = sa.select(*_CLAIMED).where(
            jobs.c.message_id == message_id, jobs.c.session_id == session_id, jobs.c.state == JobState.RUNNING
        )
        found: Sequence[Any] = self._conn.execute(query).all()
        rows: list[Row[Any]] = sorted(found, key=lambda row: str(row.id))
        return self._with_payloads(rows, message_id, session_id, now)

    def _with_payloads(
        self, rows: Sequence[Row[Any]], message_id: str, session_id: str, now: float
    ) -> list[ClaimedJob]:
        """The rows, which are all that runs under this message and session, with their inputs."""
        found = self._conn.execute(_INPUTS_OF_MESSAGE, {"b_message": message_id, "b_session": session_id})
        inputs = {row.job_id: row for row in found}
        return [_claimed(row, inputs[row.id], now) for row in rows]


def _claimed(row: Row[Any], given: Row[Any], now: float) -> ClaimedJob:
    blob = None
    if given.blob_path is not None:
        blob = InputBlob(given.blob_path, given.blob_offset, given.blob_size, given.sha256)
    return ClaimedJob(
        id=row.id,
        attempt=row.attempt,
        project_id=row.project_id,
        kind=JobKind(row.kind),
        priority=Priority(row.priority),
        version_id=row.version_id,
        model_ref=row.model_ref,
        options=row.options,
        payload=bytes(given.payload),
        num_inputs=row.num_inputs,
        is_alone=row.is_alone,
        num_losses=row.num_losses,
        created_at=row.created_at,
        claimed_at=now,
        deadline_at=row.deadline_at,
        input_file_id=row.input_file_id,
        input_blob=blob,
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
