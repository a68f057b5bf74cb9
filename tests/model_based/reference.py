"""What the tables must say: states, attempts, leases, messages and events as plain objects, one method a move.

Written from the promises in `docs/architecture.md`, with no SQL: where the two differ, one of them is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ondol.contract.states import JobState, Priority

Pair = tuple[str, int]
Move = tuple[str | None, str, str, int | None]
"""from, to, reason, attempt: the data of a state event."""

MAX_LOSSES = 3
LAPSES_BEFORE_ALONE = 3
_S = JobState
TERMINAL = (_S.SUCCEEDED, _S.FAILED, _S.CANCELLED)


@dataclass
class Job:
    """A job as it must stand in the tables."""

    id: str
    is_training: bool
    priority: Priority
    state: JobState
    run_after: float
    deadline_at: float | None
    wants_notice: bool
    attempt: int = 0
    session: str | None = None
    message: str | None = None
    num_losses: int = 0
    num_lapses: int = 0
    num_retries: int = 0
    is_alone: bool = False
    is_pause_asked: bool = False
    holds_device: bool = False
    error: str | None = None
    result_of: int | None = None
    num_ends: int = 0
    events: list[Move | str] = field(default_factory=list)
    outcomes: dict[int, str | None] = field(default_factory=dict)
    sessions: dict[int, str] = field(default_factory=dict)

    def is_current(self, attempt: int, state: JobState = _S.RUNNING) -> bool:
        """Whether the attempt is the one that may write."""
        return self.state is state and self.attempt == attempt

    def is_checked(self, attempt: int) -> bool:
        """Whether that attempt is at the job's files now."""
        return self.is_current(attempt, _S.VALIDATING_FILES) and self.session is not None

    def move(self, after: JobState, reason: str) -> None:
        """Change the state; the event is told, who held the job lets go."""
        self.events.append((self.state, after, reason, self.attempt))
        self.state = after
        if after in TERMINAL:
            self.num_ends += self.wants_notice
        if after is not _S.RUNNING:
            self.session = self.message = None

    def close(self, outcome: str) -> None:
        """Write down how the latest attempt ended."""
        self.outcomes[self.attempt] = outcome


@dataclass
class Session:
    """A worker's lease."""

    id: str
    worker: str
    is_trainer: bool
    expires_at: float
    is_ready: bool = False
    has_ended: bool = False


@dataclass
class Message:
    """A message that was rung and not finished."""

    id: str
    worker: str
    lane: Priority
    rung_at: float
    is_training: bool
    claimed_by: str | None = None


class Reference:
    """All jobs, sessions and messages. `now` is the time of the move, set by the caller before each."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.jobs: dict[str, Job] = {}
        self.sessions: dict[str, Session] = {}
        self.messages: dict[str, Message] = {}

    # Sessions

    def is_live(self, session_id: str) -> bool:
        """Whether the lease runs."""
        session = self.sessions[session_id]
        return not session.has_ended and session.expires_at > self.now

    def open(self, session: Session) -> None:
        """A worker begins; what its name held before goes back."""
        for earlier in self.sessions.values():
            if earlier.worker == session.worker and not earlier.has_ended:
                self.take_back(earlier.id)
                self._end(earlier)
        self.sessions[session.id] = session

    def renew(self, session_id: str, lease_s: float, *, may_be_late: bool) -> bool:
        """Extend a lease that nobody has ended."""
        session = self.sessions[session_id]
        if session.has_ended or not (may_be_late or session.expires_at > self.now):
            return False
        session.expires_at, session.is_ready = self.now + lease_s, True
        return True

    def stop(self, session_id: str) -> list[str]:
        """A worker goes: everything goes back, nothing is counted. Ids of the jobs that ran."""
        held = [(job.id, job.attempt) for job in self._held_by(session_id) if job.state is _S.RUNNING]
        handed = self.hand_back(held)
        for job in self._held_by(session_id):
            self.give_back_check(job.id, job.attempt)
        self._free_devices(session_id)
        worker = self.sessions[session_id].worker
        self.release(m.id for m in self.messages.values() if m.worker == worker)
        self._end(self.sessions[session_id])
        return handed

    def reconcile(self, *, rung_before: float) -> None:
        """One round of repairs."""
        for session in self.sessions.values():
            if not session.has_ended and session.expires_at <= self.now:
                self._end(session)
                self.take_back(session.id)
        for job in self.jobs.values():
            if job.state is _S.QUEUED and job.deadline_at is not None and job.deadline_at < self.now:
                job.error = "deadline_exceeded"
                job.move(_S.FAILED, "deadline_exceeded")
        self.release(m.id for m in self.messages.values() if m.claimed_by is None and m.rung_at < rung_before)
        self.release(m.id for m in self.messages.values() if self._is_orphan(m))

    def take_back(self, session_id: str) -> None:
        """The session is over without a word: its jobs are queued again, or fail at the third loss."""
        for job in self._held_by(session_id):
            if job.state is _S.VALIDATING_FILES:
                self._lose_check(job)
                continue
            job.close("lost")
            job.num_losses += job.is_alone or job.is_training
            job.num_lapses += 1
            job.is_alone = job.is_alone or job.num_lapses >= LAPSES_BEFORE_ALONE
            self._move_lost(job, "session_lapsed")
        self._free_devices(session_id)
        for message_id in [m.id for m in self.messages.values() if m.claimed_by == session_id]:
            del self.messages[message_id]

    # Messages

    def waiting(self, lane: Priority) -> list[Job]:
        """Jobs of a class that could be rung for a device now."""
        return [
            job
            for job in self.jobs.values()
            if not job.is_training
            and job.state is _S.QUEUED
            and job.message is None
            and job.priority is lane
            and job.run_after <= self.now
        ]

    def waiting_training(self, state: JobState) -> list[Job]:
        """Fine-tunes in that state that could be rung for a trainer now."""
        return [
            job
            for job in self.jobs.values()
            if job.is_training
            and job.state is state
            and job.message is None
            and job.session is None
            and job.run_after <= self.now
        ]

    def window(self, worker: str, lane: Priority) -> int:
        """Messages of the class that the worker has out."""
        return sum(m.worker == worker and m.lane is lane for m in self.messages.values())

    def ready(self, *, is_trainer: bool) -> list[str]:
        """Workers for which may be rung."""
        return [
            s.worker for s in self.sessions.values() if s.is_ready and s.is_trainer == is_trainer and self.is_live(s.id)
        ]

    def rung(self, message: Message, pairs: Sequence[Pair]) -> None:
        """Jobs are named by a new message; each must have waited."""
        self.messages[message.id] = message
        for job_id, attempt in pairs:
            job = self.jobs[job_id]
            assert job.message is None and job.session is None, f"{job_id} was rung twice"
            assert job.state in (_S.QUEUED, _S.VALIDATING_FILES) and job.attempt == attempt
            assert job.run_after <= self.now, f"{job_id} was rung before its time"
            job.message = message.id

    def release(self, message_ids: Iterable[str]) -> int:
        """Forget messages; what still waits under them waits to be rung again."""
        ids = list(message_ids)
        for message_id in ids:
            del self.messages[message_id]
            for job in self.jobs.values():
                if job.message == message_id and job.session is None:
                    job.message = None
        return len(ids)

    def claim(self, message_id: str, session_id: str) -> list[Pair]:
        """What the session runs, or checks, from now on."""
        message = self.messages.get(message_id)
        if message is None or not self.is_live(session_id) or message.claimed_by not in (None, session_id):
            return []
        message.claimed_by = session_id
        claimed = [j for j in self.jobs.values() if j.message == message_id and j.session is None]
        for job in claimed:
            job.attempt += 1
            job.session = job.sessions[job.attempt] = session_id
            job.outcomes[job.attempt] = None
            job.move(_S.RUNNING if job.state is _S.QUEUED else job.state, "claimed")
            job.session, job.message = session_id, message_id
        return [(job.id, job.attempt) for job in claimed]

    # Attempts

    def complete(self, pairs: Sequence[Pair]) -> list[str]:
        """The ids whose result counts."""
        done = [self.jobs[i] for i, attempt in pairs if i in self.jobs and self.jobs[i].is_current(attempt)]
        for job in done:
            job.result_of = job.attempt
            job.close("succeeded")
            job.move(_S.SUCCEEDED, "completed")
        return [job.id for job in done]

    def fail(self, pair: Pair, *, retry_after_s: float | None, max_retries: int, code: str) -> list[str]:
        """An attempt ended without a result."""
        job = self.jobs.get(pair[0])
        if job is None or not job.is_current(pair[1]):
            return []
        job.close("failed")
        if retry_after_s is not None and job.num_retries < max_retries:
            job.num_retries += 1
            job.run_after = self.now + retry_after_s
            job.move(_S.QUEUED, "retryable_error")
        else:
            job.error = code
            job.move(_S.FAILED, "failed")
        return [job.id]

    def lose(self, pair: Pair) -> bool:
        """The attempt's process died."""
        job = self.jobs.get(pair[0])
        if job is None or not job.is_current(pair[1]):
            return False
        job.close("lost")
        job.num_losses += 1
        job.num_lapses += 1
        self._move_lost(job, "process_died")
        return True

    def hand_back(self, pairs: Sequence[Pair]) -> list[str]:
        """The holder does not want them."""
        back = [self.jobs[i] for i, attempt in pairs if i in self.jobs and self.jobs[i].is_current(attempt)]
        for job in back:
            job.close("handed_back")
            job.move(_S.QUEUED, "handed_back")
        return [job.id for job in back]

    def append_event(self, pair: Pair) -> bool:
        """The attempt reports progress."""
        job = self.jobs.get(pair[0])
        if job is None or not (job.is_current(pair[1]) or job.is_current(pair[1], _S.VALIDATING_FILES)):
            return False
        job.events.append("progress")
        return True

    # What people ask for

    def cancel(self, job_id: str) -> bool:
        """False where it ended otherwise."""
        job = self.jobs[job_id]
        if job.state in (_S.SUCCEEDED, _S.FAILED):
            return False
        if job.state is not _S.CANCELLED:
            job.holds_device = job.is_training and job.session is not None
            job.is_pause_asked = False
            if job.attempt and job.outcomes[job.attempt] is None:
                job.close("cancelled")
            job.move(_S.CANCELLED, "cancel_requested")
        return True

    def retry(self, job_id: str) -> bool:
        """False where it did not fail."""
        job = self.jobs[job_id]
        if job.state is not _S.FAILED:
            return False
        job.move(_S.QUEUED, "retry_requested")
        job.num_losses = job.num_lapses = job.num_retries = 0
        job.is_alone = job.is_pause_asked = False
        job.error = job.deadline_at = None
        job.run_after = self.now
        return True

    def delete(self, job_id: str) -> bool:
        """False while it is active."""
        if self.jobs[job_id].state not in TERMINAL:
            return False
        del self.jobs[job_id]
        return True

    # Fine-tunes

    def validated(self, pair: Pair) -> bool:
        """The files are good."""
        job = self.jobs.get(pair[0])
        if job is None or not job.is_checked(pair[1]):
            return False
        job.close("validated")
        job.num_losses = job.num_retries = 0
        job.move(_S.QUEUED, "validated")
        return True

    def refuse(self, pair: Pair, code: str) -> bool:
        """The files are not good."""
        job = self.jobs.get(pair[0])
        if job is None or not job.is_checked(pair[1]):
            return False
        job.close("failed")
        job.error = code
        job.move(_S.FAILED, "failed")
        return True

    def give_back_check(self, job_id: str, attempt: int) -> bool:
        """The node stops in the middle of a check."""
        job = self.jobs.get(job_id)
        if job is None or not job.is_checked(attempt):
            return False
        job.close("handed_back")
        job.session = job.message = None
        return True

    def put_off_check(self, pair: Pair, after_s: float, max_retries: int) -> bool:
        """The files cannot be read now."""
        job = self.jobs.get(pair[0])
        if job is None or not job.is_checked(pair[1]) or job.num_retries >= max_retries:
            return False
        job.close("failed")
        job.num_retries += 1
        job.run_after = self.now + after_s
        job.session = job.message = None
        return True

    def made_progress(self, pair: Pair) -> bool:
        """The budget of losses and retries is fresh."""
        job = self.jobs.get(pair[0])
        if job is None or not job.is_current(pair[1]):
            return False
        job.num_losses = job.num_lapses = job.num_retries = 0
        return True

    def ask_pause(self, job_id: str) -> bool:
        """False unless it trains, or is paused already."""
        job = self.jobs[job_id]
        if job.is_training and job.state is _S.RUNNING:
            job.is_pause_asked = True
        return job.state is _S.PAUSED or (job.is_training and job.state is _S.RUNNING)

    def pause(self, pair: Pair) -> bool:
        """The trainer stands on a checkpoint."""
        job = self.jobs.get(pair[0])
        if job is None or not job.is_current(pair[1]):
            return False
        job.is_pause_asked = False
        job.close("paused")
        job.move(_S.PAUSED, "pause_requested")
        return True

    def resume(self, job_id: str) -> bool:
        """False unless it is paused."""
        job = self.jobs[job_id]
        if job.state is not _S.PAUSED:
            return False
        job.run_after = self.now
        job.move(_S.QUEUED, "resume_requested")
        return True

    def free_device(self, pair: Pair) -> bool:
        """A cancelled fine-tune's processes are gone."""
        job = self.jobs.get(pair[0])
        if job is None or not job.is_current(pair[1], _S.CANCELLED) or not job.holds_device:
            return False
        job.holds_device = False
        job.events.append("message")
        return True

    # Parts of moves

    def _held_by(self, session_id: str) -> list[Job]:
        return [job for job in self.jobs.values() if job.session == session_id]

    def _is_orphan(self, message: Message) -> bool:
        return message.claimed_by is not None and self.sessions[message.claimed_by].has_ended

    def _end(self, session: Session) -> None:
        session.has_ended, session.is_ready = True, False

    def _lose_check(self, job: Job) -> None:
        job.close("lost")
        job.num_losses += 1
        job.session = job.message = None
        if job.num_losses >= MAX_LOSSES:
            job.error = "worker_lost"
            job.move(_S.FAILED, "worker_lost")

    def _move_lost(self, job: Job, reason: str) -> None:
        """One move and one event, whichever loss it was."""
        if job.num_losses < MAX_LOSSES:
            job.move(_S.QUEUED, reason)
        else:
            job.error = "worker_lost"
            job.move(_S.FAILED, "worker_lost")

    def _free_devices(self, session_id: str) -> None:
        for job in self.jobs.values():
            if job.holds_device and job.sessions.get(job.attempt) == session_id:
                self.free_device((job.id, job.attempt))
