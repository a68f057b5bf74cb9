"""Fine-tunes in SQL: what is rung for trainer nodes, validation of their files, pausing.

A trainer node has two lanes of one message each: files are checked while another fine-tune trains for hours. Every
write of an attempt is fenced by (job, attempt, state), as for all other jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ondol.contract.errors import IllegalTransition
from ondol.contract.ids import new_id
from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState, Priority, Reason
from ondol.sql.records import ClaimedTraining, JobRecord, JsonObject, RungMessage
from ondol.sql.tables import IS_HOLDING_A_DEVICE, IS_UNFINISHED_TRAINING, attempts, events, jobs, messages

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork

CHECK_LANE, TRAIN_LANE = Priority.INTERACTIVE, Priority.BULK
"""Windows (and queues) of a trainer node: for files to check, and for fine-tunes to run."""
MAX_LOSSES_WITHOUT_PROGRESS = 3

_RANK = sa.case({Priority.INTERACTIVE.value: 0, Priority.NORMAL.value: 1}, value=jobs.c.priority, else_=2)
_IS_CHECK = jobs.c.state == JobState.VALIDATING_FILES
_IS_HELD_CHECK = sa.and_(_IS_CHECK, jobs.c.session_id.is_not(None))
"""A check that goes on; one that was taken back keeps its attempt's number until it is claimed again."""


class TrainingRepository:
    """What only fine-tunes have; their other moves are those of every job."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn

    def choose(self, trainers: Sequence[str]) -> list[RungMessage]:
        """One message for each free lane of the ready trainer nodes, by class, then by the time of acceptance."""
        chosen: list[RungMessage] = []
        for lane, state in ((CHECK_LANE, JobState.VALIDATING_FILES), (TRAIN_LANE, JobState.QUEUED)):
            for worker in self._with_free_lane(trainers, lane):
                message = self._choose_one(worker, lane, state)
                if message is None:
                    break
                chosen.append(message)
        return chosen

    def claim(self, message_id: str, *, session_id: str, worker: str) -> ClaimedTraining | None:
        """Claim the fine-tune that the message rang, if it still waits under it and the session's lease runs."""
        if not self._uow.sessions.hold(session_id) or not self._claim_message(message_id, session_id):
            return None
        query = sa.select(jobs.c.id, jobs.c.state).where(
            jobs.c.message_id == message_id, IS_UNFINISHED_TRAINING, jobs.c.session_id.is_(None)
        )
        waiting = self._conn.execute(query if self._uow.is_sqlite else query.with_for_update()).one_or_none()
        if waiting is None:
            return self._claimed_before(message_id, session_id) if self._uow.is_retry else None
        is_check = waiting.state == JobState.VALIDATING_FILES
        now = self._uow.now
        values: dict[str, Any] = {} if is_check else {"state": JobState.RUNNING}
        statement = (
            sa.update(jobs)
            .where(jobs.c.id == waiting.id)
            .values(
                attempt=jobs.c.attempt + 1,
                session_id=session_id,
                started_at=now,
                event_seq=jobs.c.event_seq + 1,
                **values,
            )
            .returning(jobs.c.attempt, jobs.c.event_seq)
        )
        row = self._conn.execute(statement).one()
        self._conn.execute(
            sa.insert(attempts),
            [
                {
                    "job_id": waiting.id,
                    "attempt": row.attempt,
                    "session_id": session_id,
                    "worker": worker,
                    "message_id": message_id,
                    "started_at": now,
                }
            ],
        )
        self._uow.events.add_states(
            [(waiting.id, row.event_seq)],
            before=JobState(waiting.state),
            after=JobState(waiting.state) if is_check else JobState.RUNNING,
            reason=Reason.CLAIMED,
            attempt=row.attempt,
            worker=worker,
        )
        return self._claimed(waiting.id)

    def validated(self, job_id: str, attempt: int, resolved: JsonObject, *, worker: str) -> bool:
        """The files are good: freeze what was resolved and queue the job; False when the attempt is stale."""
        return self._end_check(
            job_id,
            attempt,
            after=JobState.QUEUED,
            reason=Reason.VALIDATED,
            outcome="validated",
            values={"resolved": resolved, "num_inputs": resolved["max_steps"], "num_losses": 0, "num_retries": 0},
            worker=worker,
        )

    def begin_after_check(self, job_id: str, attempt: int, *, worker: str) -> None:
        """Move a job that was validated in this very transaction on to running, for a result that needs no training."""
        statement = (
            sa.update(jobs)
            .where(jobs.c.id == job_id, jobs.c.attempt == attempt, jobs.c.state == JobState.QUEUED)
            .values(state=JobState.RUNNING, event_seq=jobs.c.event_seq + 1)
            .returning(jobs.c.event_seq)
        )
        seq = self._conn.execute(statement).scalar_one()
        self._uow.events.add_states(
            [(job_id, seq)],
            before=JobState.QUEUED,
            after=JobState.RUNNING,
            reason=Reason.CLAIMED,
            attempt=attempt,
            worker=worker,
        )

    def refuse(self, job_id: str, attempt: int, error: JsonObject, *, worker: str) -> bool:
        """The files are not good: the job has failed; False when the attempt is stale."""
        return self._end_check(
            job_id,
            attempt,
            after=JobState.FAILED,
            reason=Reason.FAILED,
            outcome="failed",
            values={"finished_at": self._uow.now, "error": error},
            worker=worker,
            error=error,
        )

    def give_back_check(self, job_id: str, attempt: int) -> bool:
        """A stopping node gives a check back: nothing is counted; False when the attempt is stale."""
        statement = (
            sa.update(jobs)
            .where(jobs.c.id == job_id, jobs.c.attempt == attempt, _IS_HELD_CHECK)
            .values(message_id=None, session_id=None)
        )
        if not self._conn.execute(statement).rowcount:
            return False
        self._uow.attempts.close_attempt(job_id, attempt, "handed_back")
        return True

    def put_off_check(self, job_id: str, attempt: int, error: JsonObject, *, after_s: float, max_retries: int) -> bool:
        """Have the files checked again in `after_s` seconds; False when the attempt is stale or no retry is left."""
        statement = (
            sa.update(jobs)
            .where(jobs.c.id == job_id, jobs.c.attempt == attempt, _IS_HELD_CHECK, jobs.c.num_retries < max_retries)
            .values(
                message_id=None,
                session_id=None,
                run_after=self._uow.now + after_s,
                num_retries=jobs.c.num_retries + 1,
            )
        )
        if not self._conn.execute(statement).rowcount:
            return False
        self._uow.attempts.close_attempt(job_id, attempt, "failed", error)
        return True

    def take_back_checks(self, session_id: str) -> list[str]:
        """Let others check the files that a lapsed session was at; the third loss fails the job. The jobs' ids."""
        statement = (
            sa.update(jobs)
            .where(jobs.c.session_id == session_id, _IS_CHECK)
            .values(message_id=None, session_id=None, num_losses=jobs.c.num_losses + 1)
            .returning(jobs.c.id, jobs.c.attempt, jobs.c.num_losses)
        )
        rows = self._conn.execute(statement).all()
        for row in rows:
            self._uow.attempts.close_attempt(row.id, row.attempt, "lost")
            if row.num_losses >= MAX_LOSSES_WITHOUT_PROGRESS:
                self._fail_check(row.id, row.attempt)
        return [row.id for row in rows]

    def checks_held_by(self, session_id: str) -> list[tuple[str, int]]:
        """(job id, attempt) of every check that runs under the session."""
        query = sa.select(jobs.c.id, jobs.c.attempt).where(jobs.c.session_id == session_id, _IS_CHECK)
        return [(row.id, row.attempt) for row in self._conn.execute(query)]

    def release_checks(self, message_ids: Sequence[str]) -> None:
        """Unbind the checks that were rung by these messages and not claimed."""
        self._conn.execute(
            sa.update(jobs)
            .where(jobs.c.message_id.in_(message_ids), _IS_CHECK, jobs.c.session_id.is_(None))
            .values(message_id=None)
        )

    def recall_orphans(self) -> int:
        """Unbind checks whose message no longer exists. How many."""
        statement = (
            sa.update(jobs)
            .where(
                IS_UNFINISHED_TRAINING,
                _IS_CHECK,
                jobs.c.message_id.is_not(None),
                jobs.c.session_id.is_(None),
                jobs.c.message_id.not_in(sa.select(messages.c.id)),
            )
            .values(message_id=None)
        )
        return self._conn.execute(statement).rowcount

    def status(self, job_id: str, attempt: int) -> tuple[bool, bool]:
        """Whether the attempt is current, and whether a pause was asked for."""
        query = sa.select(jobs.c.state, jobs.c.attempt, jobs.c.pause_requested_at).where(jobs.c.id == job_id)
        row = self._conn.execute(query).one_or_none()
        if row is None or row.attempt != attempt or row.state not in (JobState.RUNNING, JobState.VALIDATING_FILES):
            return False, False
        return True, row.pause_requested_at is not None

    def set_resolved(self, job_id: str, attempt: int, resolved: JsonObject) -> bool:
        """Freeze (more of) the resolved configuration under a running attempt; False when it is stale."""
        return self._update_running(job_id, attempt, resolved=resolved, num_inputs=resolved["max_steps"])

    def set_progress(self, job_id: str, attempt: int, *, num_steps: int, max_steps: int) -> bool:
        """Steps done and to be done; False when the attempt is stale."""
        return self._update_running(job_id, attempt, num_done=num_steps, num_inputs=max_steps)

    def made_progress(self, job_id: str, attempt: int) -> bool:
        """Count losses and retries of a running attempt anew; False when it is stale."""
        return self._update_running(job_id, attempt, num_losses=0, num_lapses=0, num_retries=0)

    def queue_position(self, job: JobRecord) -> int:
        """How many queued fine-tunes go before this one."""
        rank = {Priority.INTERACTIVE: 0, Priority.NORMAL: 1}.get(job.priority, 2)
        mine = sa.tuple_(sa.literal(rank), sa.literal(job.run_after), sa.literal(job.id))
        query = sa.select(sa.func.count()).where(
            IS_UNFINISHED_TRAINING,
            jobs.c.state == JobState.QUEUED,
            sa.tuple_(_RANK, jobs.c.run_after, jobs.c.id) < mine,
        )
        return int(self._conn.execute(query).scalar_one())

    def request_pause(self, job_id: str, project_id: str) -> JobRecord:
        """Ask the trainer to stop at its next checkpoint; IllegalTransition unless the job trains."""
        job = self._uow.jobs.get(job_id, project_id)
        statement = (
            sa.update(jobs)
            .where(jobs.c.id == job_id, jobs.c.kind == JobKind.FINE_TUNE, jobs.c.state == JobState.RUNNING)
            .values(pause_requested_at=sa.func.coalesce(jobs.c.pause_requested_at, self._uow.now))
        )
        if job.state is not JobState.PAUSED and not self._conn.execute(statement).rowcount:
            raise IllegalTransition(f"job {job_id} is {job.state}; only a fine-tune that trains can be paused")
        return self._uow.jobs.get(job_id, project_id)

    def pause(self, job_id: str, attempt: int, *, worker: str) -> bool:
        """The trainer stands on a checkpoint: the job is paused; False when the attempt is stale."""
        if not self._update_running(job_id, attempt, pause_requested_at=None):
            return False
        return self._uow.attempts.end_as(
            job_id, attempt, JobState.PAUSED, Reason.PAUSE_REQUESTED, outcome="paused", worker=worker
        )

    def resume(self, job_id: str, project_id: str) -> JobRecord:
        """Queue a paused job again; IllegalTransition if it is not paused."""
        job = self._uow.jobs.get(job_id, project_id)
        statement = (
            sa.update(jobs)
            .where(jobs.c.id == job_id, jobs.c.state == JobState.PAUSED)
            .values(state=JobState.QUEUED, run_after=self._uow.now, event_seq=jobs.c.event_seq + 1)
            .returning(jobs.c.event_seq, jobs.c.attempt)
        )
        row = self._conn.execute(statement).one_or_none()
        if row is None:
            raise IllegalTransition(f"job {job_id} is {job.state}; only a paused job can be resumed")
        self._uow.events.add_states(
            [(job_id, row.event_seq)],
            before=JobState.PAUSED,
            after=JobState.QUEUED,
            reason=Reason.RESUME_REQUESTED,
            attempt=row.attempt,
        )
        return self._uow.jobs.get(job_id, project_id)

    def device_released(self, job_id: str, attempt: int) -> bool:
        """A cancelled job's processes are gone: its device is free since now. False: stale, or said already."""
        statement = (
            sa.update(jobs)
            .where(
                jobs.c.id == job_id,
                jobs.c.attempt == attempt,
                jobs.c.state == JobState.CANCELLED,
                jobs.c.device_released_at.is_(None),
            )
            .values(device_released_at=self._uow.now, event_seq=jobs.c.event_seq + 1)
            .returning(jobs.c.event_seq)
        )
        seq = self._conn.execute(statement).scalar()
        if seq is None:
            return False
        data = {"message": "the device is free", "device_released_at": self._uow.now}
        row = {"job_id": job_id, "seq": seq, "created_at": self._uow.now, "type": "message", "data": data}
        self._conn.execute(sa.insert(events), [row])
        return True

    def release_devices(self, session_id: str) -> None:
        """Say of cancelled jobs whose trainer's session is over that their device is free: nobody else will."""
        latest = sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.attempt == jobs.c.attempt)
        query = (
            sa.select(jobs.c.id, jobs.c.attempt)
            .join(attempts, latest)
            .where(IS_HOLDING_A_DEVICE, attempts.c.session_id == session_id)
            .order_by(jobs.c.id)
        )
        for row in self._conn.execute(query).all():
            self.device_released(row.id, row.attempt)

    def _with_free_lane(self, trainers: Sequence[str], lane: Priority) -> list[str]:
        if not trainers:
            return []
        query = sa.select(messages.c.worker).where(messages.c.worker.in_(trainers), messages.c.priority == lane)
        taken = {row.worker for row in self._conn.execute(query)}
        return [worker for worker in trainers if worker not in taken]

    def _choose_one(self, worker: str, lane: Priority, state: JobState) -> RungMessage | None:
        query = (
            sa.select(jobs.c.id, jobs.c.attempt)
            .where(
                IS_UNFINISHED_TRAINING,
                jobs.c.state == state,
                jobs.c.message_id.is_(None),
                jobs.c.session_id.is_(None),
                jobs.c.run_after <= self._uow.now,
            )
            .order_by(_RANK, jobs.c.run_after, jobs.c.id)
            .limit(1)
        )
        row = self._conn.execute(
            query if self._uow.is_sqlite else query.with_for_update(skip_locked=True)
        ).one_or_none()
        if row is None:
            return None
        message_id = new_id("msg")
        message = {
            "id": message_id,
            "worker": worker,
            "priority": lane.value,
            "num_jobs": 1,
            "rung_at": self._uow.now,
        }
        self._conn.execute(sa.insert(messages), [message])
        self._conn.execute(sa.update(jobs).where(jobs.c.id == row.id).values(message_id=message_id))
        return RungMessage(message_id, worker, lane, JobKind.FINE_TUNE, ((row.id, row.attempt),))

    def _claim_message(self, message_id: str, session_id: str) -> bool:
        statement = (
            sa.update(messages)
            .where(
                messages.c.id == message_id,
                sa.or_(messages.c.claimed_at.is_(None), messages.c.session_id == session_id),
            )
            .values(claimed_at=self._uow.now, session_id=session_id)
        )
        return self._conn.execute(statement).rowcount == 1

    def _claimed_before(self, message_id: str, session_id: str) -> ClaimedTraining | None:
        """What an earlier, unanswered commit of the same claim took."""
        query = sa.select(jobs.c.id).where(
            jobs.c.message_id == message_id,
            jobs.c.session_id == session_id,
            jobs.c.state.in_((JobState.RUNNING, JobState.VALIDATING_FILES)),
        )
        job_id = self._conn.execute(query).scalar()
        return None if job_id is None else self._claimed(job_id)

    def _claimed(self, job_id: str) -> ClaimedTraining:
        job = self._conn.execute(sa.select(jobs).where(jobs.c.id == job_id)).one()
        return ClaimedTraining(
            id=job.id,
            attempt=job.attempt,
            project_id=job.project_id,
            is_check=job.state == JobState.VALIDATING_FILES,
            version_id=job.version_id,
            model_ref=job.model_ref,
            options=job.options,
            resolved=job.resolved,
            trained_s=self._trained_s(job_id, job.attempt),
            created_at=job.created_at,
            claimed_at=self._uow.now,
        )

    def _trained_s(self, job_id: str, attempt: int) -> float:
        spent = sa.func.coalesce(sa.func.sum(attempts.c.finished_at - attempts.c.started_at), 0.0)
        query = sa.select(spent).where(
            attempts.c.job_id == job_id, attempts.c.attempt < attempt, attempts.c.outcome != "validated"
        )
        return float(self._conn.execute(query).scalar_one())

    def _end_check(
        self,
        job_id: str,
        attempt: int,
        *,
        after: JobState,
        reason: Reason,
        outcome: str,
        values: dict[str, Any],
        worker: str | None,
        error: JsonObject | None = None,
        condition: sa.ColumnElement[bool] = _IS_HELD_CHECK,
    ) -> bool:
        statement = (
            sa.update(jobs)
            .where(jobs.c.id == job_id, jobs.c.attempt == attempt, condition)
            .values(state=after, message_id=None, session_id=None, event_seq=jobs.c.event_seq + 1, **values)
            .returning(jobs.c.event_seq)
        )
        seq = self._conn.execute(statement).scalar()
        if seq is None:
            return False
        self._uow.events.add_states(
            [(job_id, seq)],
            before=JobState.VALIDATING_FILES,
            after=after,
            reason=reason,
            attempt=attempt,
            worker=worker,
        )
        self._uow.attempts.close_attempt(job_id, attempt, outcome, error)
        return True

    def _fail_check(self, job_id: str, attempt: int) -> None:
        error = {
            "code": "worker_lost",
            "message": f"the process died {MAX_LOSSES_WITHOUT_PROGRESS} times while it checked the files of this job",
            "param": None,
        }
        self._end_check(
            job_id,
            attempt,
            after=JobState.FAILED,
            reason=Reason.WORKER_LOST,
            outcome="lost",
            values={"finished_at": self._uow.now, "error": error},
            worker=None,
            condition=_IS_CHECK,
        )

    def _update_running(self, job_id: str, attempt: int, **values: Any) -> bool:
        statement = (
            sa.update(jobs)
            .where(jobs.c.id == job_id, jobs.c.attempt == attempt, jobs.c.state == JobState.RUNNING)
            .values(**values)
        )
        return self._conn.execute(statement).rowcount == 1
