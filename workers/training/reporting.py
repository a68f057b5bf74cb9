"""From the child's events to SQL: events for good, progress, checkpoints. Fenced; an outage is waited out.

What SQL does not take now is kept, in order, and written when it answers again, if the attempt is still current.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

from ondol.broker.wake import WakeBus
from ondol.contract.errors import DatabaseUnavailable, StaleAttempt
from ondol.sql.database import Database
from ondol.sql.records import ClaimedTraining
from ondol.sql.unit_of_work import UnitOfWork

log = structlog.get_logger(__name__)

Write = Callable[[UnitOfWork], bool]
"""One fenced write; False when the attempt is stale."""

MAX_LOG_LINES = 1_000
MAX_LINE_CHARS = 500
_RETRY_S = 1.0


class Reporter:
    """Writes what one attempt has to say; used from one thread. Every method may raise StaleAttempt."""

    def __init__(self, database: Database, wake: WakeBus, job: ClaimedTraining) -> None:
        self._database = database
        self._wake = wake
        self._job = job
        self._waiting: deque[Write] = deque()
        self._tried: list[tuple[int, int]] = []
        """Of each try of what waits: how much was tried, and the job's last event if it was committed after all."""
        self._last_seq = 0
        self._retry_at = 0.0
        self._num_lines = 0

    @property
    def has_unwritten(self) -> bool:
        """Whether something waits for SQL to answer again."""
        return bool(self._waiting)

    def say(self, message: str, **data: Any) -> None:
        """A `message` event."""
        self._append("message", {"message": message, **data})

    def measure(self, data: dict[str, Any]) -> None:
        """A `metrics` event."""
        self._append("metrics", data)

    def log(self, lines: list[str]) -> None:
        """A `log` event of these lines; a thousand lines an attempt are kept."""
        kept = [line[:MAX_LINE_CHARS] for line in lines[: MAX_LOG_LINES - self._num_lines]]
        if kept:
            self._num_lines += len(kept)
            self._append("log", {"lines": kept, "attempt": self._job.attempt})

    def progress(self, num_steps: int, max_steps: int) -> None:
        """Steps done, of how many."""
        job = self._job
        self.write(lambda uow: uow.training.set_progress(job.id, job.attempt, num_steps=num_steps, max_steps=max_steps))

    def write(self, work: Write) -> None:
        """Do a fenced write now, or when SQL answers again; those that came before go first."""
        self._waiting.append(work)
        self.flush()

    def flush(self) -> None:
        """Write what waits, as far as SQL answers; in an outage SQL is asked once a second."""
        if not self._waiting or time.monotonic() < self._retry_at:
            return
        batch = list(self._waiting)
        try:
            is_current = self._database.write(lambda uow: self._write_all(uow, batch))
        except DatabaseUnavailable as exc:
            log.warning("trainer.events_wait", num_waiting=len(batch), reason=exc.message)
            self._retry_at = time.monotonic() + _RETRY_S
            return
        self._waiting.clear()
        self._tried.clear()
        if not is_current:
            raise StaleAttempt(f"attempt {self._job.attempt} at {self._job.id} is no longer current")
        self._wake.wake([self._job.id])

    def _write_all(self, uow: UnitOfWork, batch: list[Write]) -> bool:
        """Write the batch but for what commits whose answers were lost have written: no event is told twice.

        While the attempt is current nobody else adds events to the job, so its last event's number tells which were.
        """
        num_written = 0
        if self._tried:
            state = uow.jobs.states_of([self._job.id]).get(self._job.id)
            if state is not None:
                num_written = max((num for num, seq in self._tried if state[1] >= seq), default=0)
        self._last_seq = 0
        is_current = all(work(uow) for work in batch[num_written:])
        if self._last_seq:
            self._tried.append((len(batch), self._last_seq))
        return is_current

    def _append(self, type: str, data: dict[str, Any]) -> None:
        job = self._job

        def append(uow: UnitOfWork) -> bool:
            seq = uow.events.append(job.id, attempt=job.attempt, type=type, data=data)
            self._last_seq = seq or self._last_seq
            return seq is not None

        self.write(append)
