"""Admission: how much may wait, and when to come back; from a count that is a moment old, never one a request."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import structlog
from prometheus_client import CollectorRegistry

from api.database import AsyncDatabase
from ondol.contract.errors import DatabaseUnavailable, Overloaded
from ondol.metrics.jobs import AcceptMetrics
from ondol.sql.unit_of_work import UnitOfWork

MAX_AGE_S = 1.0
DRAIN_WINDOW_S = 30.0
MAX_RETRY_AFTER_S = 60.0
_MAX_SHARE_OF_A_THREAD = 0.05

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waited when it was counted, and how fast jobs finished (jobs/s over the last half minute)."""

    num_jobs: int
    num_tokens: int
    drain_rate: float
    counted_at: float
    count_s: float

    def is_fresh(self) -> bool:
        """Whether it can be used; a count that takes long is kept longer, so that counting stays a small load."""
        return time.monotonic() - self.counted_at <= max(MAX_AGE_S, self.count_s / _MAX_SHARE_OF_A_THREAD)


class Admission:
    """Refuses jobs while the queue is full. One event loop. `counts`: what comes in at this door, and what does not."""

    def __init__(
        self, database: AsyncDatabase, *, max_jobs: int, max_tokens: int, counts: AcceptMetrics | None = None
    ) -> None:
        self.counts = counts or AcceptMetrics(CollectorRegistry())
        self._database = database
        self._max_jobs = max_jobs
        self._max_tokens = max_tokens
        self._backlog: Backlog | None = None
        self._counting: asyncio.Task[Backlog] | None = None
        self._added_jobs = 0
        self._added_tokens = 0

    async def admit(self, num_jobs: int, num_tokens: int) -> None:
        """Return if so much more may wait, else Overloaded with the time that the excess takes to drain."""
        backlog = await self.backlog()
        jobs = backlog.num_jobs + self._added_jobs + num_jobs
        tokens = backlog.num_tokens + self._added_tokens + num_tokens
        if jobs > self._max_jobs or tokens > self._max_tokens:
            retry_after_s = self._time_to_drain(backlog, jobs, tokens)
            raise Overloaded(
                f"{backlog.num_jobs} jobs of {backlog.num_tokens} estimated tokens wait already; come back later",
                retry_after_s=retry_after_s,
            )
        self._added_jobs += num_jobs
        self._added_tokens += num_tokens

    async def backlog(self) -> Backlog:
        """The last count; a stale one is used while the next is taken, only the very first is waited for."""
        backlog = self._backlog
        if backlog is None:
            return await asyncio.shield(self._count_once())
        if not backlog.is_fresh():
            self._count_once()
        return backlog

    def _count_once(self) -> asyncio.Task[Backlog]:
        if self._counting is None or self._counting.done():
            self._counting = asyncio.create_task(self._count(), name="admission-count")
            self._counting.add_done_callback(self._counted)
        return self._counting

    async def _count(self) -> Backlog:
        begun = time.monotonic()
        (jobs, tokens), finished = await self._database.read(_count_backlog)
        self._added_jobs = self._added_tokens = 0
        now = time.monotonic()
        self._backlog = Backlog(jobs, tokens, finished / DRAIN_WINDOW_S, counted_at=now, count_s=now - begun)
        return self._backlog

    def _counted(self, task: asyncio.Task[Backlog]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, DatabaseUnavailable):
            self._backlog = None  # the next request waits for a count, and is told if there is none
        elif error is not None:
            self._backlog = None
            log.error("admission.count_failed", exc_info=error)

    def _time_to_drain(self, backlog: Backlog, jobs: int, tokens: int) -> float:
        if backlog.drain_rate <= 0:
            return MAX_RETRY_AFTER_S
        tokens_a_job = backlog.num_tokens / backlog.num_jobs if backlog.num_jobs else 1.0
        excess_jobs = max(jobs - self._max_jobs, (tokens - self._max_tokens) / max(1.0, tokens_a_job))
        return min(MAX_RETRY_AFTER_S, max(1.0, excess_jobs / backlog.drain_rate))


def _count_backlog(uow: UnitOfWork) -> tuple[tuple[int, int], int]:
    return uow.jobs.backlog(), uow.jobs.num_finished_since(uow.now - DRAIN_WINDOW_S)
