"""Admission: how much may wait, in all and of each project, and when to come back.

A request that is admitted holds its room from the check on until a count has seen its jobs, so requests of one process
never take the same room. Counts are a moment old, never one a request; another process's jobs are seen with the next.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import structlog
from prometheus_client import CollectorRegistry

from api.database import AsyncDatabase
from api.drain_rate import ALL, WINDOW_S, DrainRate, Rate, by_scope
from ondol.contract.cutting import MAX_JOB_SIZE
from ondol.contract.errors import DatabaseUnavailable, OndolError, Overloaded, PayloadTooLarge
from ondol.contract.kinds import JobKind
from ondol.contract.states import Priority
from ondol.metrics.jobs import AcceptMetrics
from ondol.settings import AdmissionSettings
from ondol.sql.backlog import Amount, Backlog, ProjectRules, count_backlog
from ondol.sql.records import NewJob

MAX_AGE_S = 1.0
TIGHT_AGE_S = 0.05
TIGHT_SHARE = 0.1
"""Once this process has taken so much of the room that the count found, only a count so young decides: other processes
take as much meanwhile, and by that the limits may be passed."""
UNKNOWN_RETRY_AFTER_S = 50.0
"""When to come back while nothing drains. With the spread it stays under a minute: our client gives up rather than wait
for longer."""
MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 0.25, 3600.0
"""`Retry-After` itself has whole seconds and is never less than one; `retry-after-ms` is told with the spread."""
_SPREAD_S, _SPREAD_SHARE = 0.25, 0.1
"""Who was refused with others does not come back with them: up to so much later, which also is on the safe side.
Whole seconds, rounded up, need none: it would only make them one too many."""
UNANSWERED_S = 60.0
"""How long room is held for a write of which nobody knows whether it will be committed."""
_SHARE_OF_A_THREAD = 0.05
_TIGHT_SHARE_OF_A_THREAD = 0.25

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may wait. Those of a project hold unless the project has its own; None: only the total counts."""

    jobs: int
    tokens: int
    project_jobs: int | None = None
    project_tokens: int | None = None
    trainings: int = 1_000
    """Fine-tunes that have not begun; they are in no queue of the others."""
    project_trainings: int | None = None

    def of_project(self, rules: ProjectRules) -> tuple[int, int]:
        """Jobs and tokens that a project may have waiting."""
        return (
            _least(self.jobs, self.project_jobs, rules.max_queued_jobs),
            _least(self.tokens, self.project_tokens, rules.max_queued_tokens),
        )


def queue_limits(settings: AdmissionSettings) -> Limits:
    """How much may wait by the settings."""
    return Limits(
        settings.max_queued_jobs,
        settings.max_queued_tokens,
        settings.project_max_queued_jobs,
        settings.project_max_queued_tokens,
        settings.max_queued_fine_tunes,
        settings.project_max_queued_fine_tunes,
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job stands: jobs ahead in its class, and seconds until its turn as far as that can be told."""

    num_ahead: int
    start_in_s: float | None


@dataclass(frozen=True, slots=True)
class _Count:
    """A count by the clock of this process."""

    backlog: Backlog
    begun_at: float
    took_s: float

    def is_fresh(self, *, is_tight: bool = False) -> bool:
        """Whether it can be used; a count that takes long is kept longer, so that counting stays a small load."""
        age_s, share = (TIGHT_AGE_S, _TIGHT_SHARE_OF_A_THREAD) if is_tight else (MAX_AGE_S, _SHARE_OF_A_THREAD)
        return time.monotonic() - self.begun_at - self.took_s <= max(age_s, self.took_s / share)


class Reservation:
    """Room that jobs hold until a count has seen them. Left as a context, it is given back unless they are recorded."""

    __slots__ = ("_admission", "amount", "ends_at", "num_trainings", "project_id", "recorded_at")

    def __init__(self, admission: Admission, project_id: str, amount: Amount, num_trainings: int) -> None:
        self._admission = admission
        self.project_id = project_id
        self.amount = amount
        self.num_trainings = num_trainings
        self.recorded_at: float | None = None
        self.ends_at: float | None = None

    def record(self) -> None:
        """The jobs are committed. Any thread."""
        self.recorded_at = time.monotonic()

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.recorded_at is not None:
            return
        if error is None or (isinstance(error, OndolError) and not isinstance(error, DatabaseUnavailable)):
            self._admission.give_back(self)
        else:  # the write may still be committed
            self.ends_at = time.monotonic() + UNANSWERED_S


class Admission:
    """Refuses jobs while the queue is full. One event loop. `counts`: what comes in at this door, and what does not."""

    def __init__(self, database: AsyncDatabase, limits: Limits, *, counts: AcceptMetrics | None = None) -> None:
        self.counts = counts or AcceptMetrics(CollectorRegistry())
        self._database = database
        self._limits = limits
        self._count: _Count | None = None
        self._counting: asyncio.Task[_Count] | None = None
        self._drain = DrainRate()
        self._held: set[Reservation] = set()
        self._held_by: dict[str, Amount] = {}
        self._recorded: dict[str, Amount] = {}

    async def admit(self, project_id: str, num_jobs: int, num_tokens: int, *, num_trainings: int = 0) -> Reservation:
        """Room for so much more, held by what is returned; `num_trainings` of the jobs are fine-tunes.

        PayloadTooLarge if it is more than may ever wait, Overloaded, with the time that the excess takes to drain, if
        it is too much now.
        """
        new = Amount(num_jobs, num_tokens)
        count = await self._counted()
        self._check_size(count.backlog, project_id, new)
        is_tight = num_trainings > 0 or self._is_tight(count.backlog, project_id, new)
        if is_tight and not count.is_fresh(is_tight=True):
            count = await asyncio.shield(self._count_once())
        self._check_room(count.backlog, project_id, new)
        self._check_trainings(count.backlog, project_id, num_trainings)
        return self._reserve(project_id, new, num_trainings)

    async def refusals(self, jobs: Sequence[NewJob]) -> list[OndolError | None]:
        """For each job why it must not wait, whatever else does: too large, or late before it can begin."""
        backlog = (await self._counted()).backlog
        return [self._refusal(backlog, job) for job in jobs]

    async def place(self, project_id: str, priority: Priority, *, own_ahead: int | None = None) -> Place:
        """The place of the project's next job of the class, or of the one that `own_ahead` of the project's go before.

        Others' jobs go before it as far as they are fewer than their projects' share.
        """
        return self._place((await self._counted()).backlog, project_id, priority, own_ahead)

    def give_back(self, reservation: Reservation) -> None:
        """Let go of room that nothing will be recorded in."""
        if reservation in self._held:
            self._held.remove(reservation)
            self._hold(reservation.project_id, Amount() - reservation.amount)

    async def _counted(self) -> _Count:
        """The last count; a stale one is used while the next is taken, only the very first is waited for."""
        count = self._count
        if count is None:
            return await asyncio.shield(self._count_once())
        if not count.is_fresh():
            self._count_once()
        return count

    def _count_once(self) -> asyncio.Task[_Count]:
        if self._counting is None or self._counting.done():
            self._counting = asyncio.create_task(self._take_count(), name="admission-count")
            self._counting.add_done_callback(self._was_counted)
        return self._counting

    async def _take_count(self) -> _Count:
        begun_at, since = time.monotonic(), self._drain.since
        backlog = await self._database.read(lambda uow: count_backlog(uow, window_s=WINDOW_S, since=since))
        for reservation in list(self._held):
            at, ends_at = reservation.recorded_at, reservation.ends_at
            if at is not None and at < begun_at:  # the count has seen its jobs
                self._recorded[reservation.project_id] = (
                    self._recorded.get(reservation.project_id, Amount()) + reservation.amount
                )
                self.give_back(reservation)
            elif at is None and ends_at is not None and ends_at < begun_at:
                self.give_back(reservation)
        self._drain.add(backlog, self._recorded)
        self._count = _Count(backlog, begun_at, time.monotonic() - begun_at)
        return self._count

    def _was_counted(self, task: asyncio.Task[_Count]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._count = None  # the next request waits for a count, and is told if there is none
        if error is not None and not isinstance(error, DatabaseUnavailable):
            log.error("admission.count_failed", exc_info=error)

    def _reserve(self, project_id: str, amount: Amount, num_trainings: int) -> Reservation:
        reservation = Reservation(self, project_id, amount, num_trainings)
        self._held.add(reservation)
        self._hold(project_id, amount)
        return reservation

    def _hold(self, project_id: str, amount: Amount) -> None:
        for scope in (project_id, ALL):
            self._held_by[scope] = self._held_by.get(scope, Amount()) + amount
        if self._held_by[project_id] == Amount():
            del self._held_by[project_id]

    def _scopes(self, backlog: Backlog, project_id: str, new: Amount) -> list[tuple[str, Amount, int, int]]:
        """What would wait in all and of the project, with the limits: (scope, amount, most jobs, most tokens)."""
        queued = by_scope(backlog)
        limits = {ALL: (self._limits.jobs, self._limits.tokens), project_id: self._project_limits(backlog, project_id)}
        return [
            (scope, queued.get(scope, Amount()) + self._held_by.get(scope, Amount()) + new, *limit)
            for scope, limit in limits.items()
        ]

    def _project_limits(self, backlog: Backlog, project_id: str) -> tuple[int, int]:
        return self._limits.of_project(backlog.rules.get(project_id, ProjectRules()))

    def _is_tight(self, backlog: Backlog, project_id: str, new: Amount) -> bool:
        """Whether this process has taken much of the room that the count found."""
        for scope, amount, jobs, tokens in self._scopes(backlog, project_id, new):
            taken = self._held_by.get(scope, Amount()) + new
            room = Amount(jobs, tokens) - amount + taken
            if taken.num_jobs > room.num_jobs * TIGHT_SHARE or taken.num_tokens > room.num_tokens * TIGHT_SHARE:
                return True
        return False

    def _check_room(self, backlog: Backlog, project_id: str, new: Amount) -> None:
        waits_s, full = 0.0, None
        for scope, amount, jobs, tokens in self._scopes(backlog, project_id, new):
            excess = Amount(max(0, amount.num_jobs - jobs), max(0, amount.num_tokens - tokens))
            if excess != Amount():
                waits_s = max(waits_s, _time_to_drain(excess, self._drain.of(scope) or self._drain.of()))
                full = scope, amount - new, jobs, tokens
        if full is not None:
            scope, amount, jobs, tokens = full
            raise Overloaded(
                f"{amount.num_jobs} jobs of {amount.num_tokens} estimated tokens wait already"
                f"{' in this project' if scope else ''}, of at most {jobs} and {tokens}; come back later",
                retry_after_s=waits_s,
                spread_s=random.uniform(0.0, _SPREAD_S + _SPREAD_SHARE * waits_s),
            )

    def _check_trainings(self, backlog: Backlog, project_id: str, num: int) -> None:
        """Return if so many fine-tunes more may wait: how long those before them take is known to nobody."""
        if not num:
            return
        held = [(each.project_id, each.num_trainings) for each in self._held]
        total = sum(backlog.trainings.values()) + sum(num_held for _, num_held in held)
        own = backlog.trainings.get(project_id, 0) + sum(num_held for of, num_held in held if of == project_id)
        limits = (
            (total, self._limits.trainings, "", "MAX_QUEUED_FINE_TUNES"),
            (own, self._limits.project_trainings, " in this project", "PROJECT_MAX_QUEUED_FINE_TUNES"),
        )
        for waiting, limit, where, setting in limits:
            if limit is None or waiting + num <= limit:
                continue
            if num > limit:
                raise PayloadTooLarge(f"{num} fine-tunes at once; at most {limit} may wait at all (ONDOL_{setting})")
            raise Overloaded(
                f"{waiting} fine-tunes wait already{where}, of at most {limit} (ONDOL_{setting}); come back later",
                retry_after_s=UNKNOWN_RETRY_AFTER_S,
            )

    def _check_size(self, backlog: Backlog, project_id: str, new: Amount) -> None:
        jobs, tokens = self._project_limits(backlog, project_id)
        if new.num_jobs > jobs or new.num_tokens > tokens:
            raise _too_large(new, jobs, tokens)

    def _refusal(self, backlog: Backlog, job: NewJob) -> OndolError | None:
        jobs, tokens = self._project_limits(backlog, job.project_id)
        if job.estimated_tokens > min(tokens, MAX_JOB_SIZE):
            return _too_large(Amount(1, job.estimated_tokens), jobs, tokens)
        if job.deadline_s is None or job.kind is JobKind.FINE_TUNE:
            return None
        start_in_s = self._place(backlog, job.project_id, job.priority, None).start_in_s
        if start_in_s is None or start_in_s <= job.deadline_s:
            return None
        return Overloaded(
            f"what waits takes about {start_in_s:.0f} s, and the deadline is in {job.deadline_s:g} s; "
            "come back later, or give it more time",
            retry_after_s=max(1.0, start_in_s - job.deadline_s),
            param="deadline_s",
        )

    def _place(self, backlog: Backlog, project_id: str, priority: Priority, own_ahead: int | None) -> Place:
        own = backlog.queued.get((project_id, priority), Amount())
        if own_ahead is None:
            own_ahead = own.num_jobs + self._held_by.get(project_id, Amount()).num_jobs
        weight = backlog.rules.get(project_id, ProjectRules()).weight
        ahead, tokens = float(own_ahead), own.num_tokens * own_ahead / max(1, own.num_jobs)
        for (other, of_class), amount in backlog.queued.items():
            if of_class == priority and other != project_id:
                share = (own_ahead + 1) * backlog.rules.get(other, ProjectRules()).weight / weight
                first = min(float(amount.num_jobs), share)
                ahead, tokens = ahead + first, tokens + amount.num_tokens * first / max(1, amount.num_jobs)
            elif _goes_before(of_class, priority):
                tokens += amount.num_tokens
        rate = self._drain.of()
        start_in_s = None if rate is None or rate.tokens <= 0 else tokens / rate.tokens
        return Place(math.ceil(ahead), start_in_s)


def _least(total: int, of_settings: int | None, own: int | None) -> int:
    limit = own if own is not None else of_settings
    return total if limit is None else min(total, limit)


def _goes_before(one: Priority, other: Priority) -> bool:
    order = list(Priority)
    return order.index(one) < order.index(other)


def _time_to_drain(excess: Amount, rate: Rate | None) -> float:
    if rate is None:
        return UNKNOWN_RETRY_AFTER_S
    by_unit = ((excess.num_jobs, rate.jobs), (excess.num_tokens, rate.tokens))
    times = [amount / each if each > 0 else UNKNOWN_RETRY_AFTER_S for amount, each in by_unit if amount > 0]
    return min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, *times))


def _too_large(new: Amount, jobs: int, tokens: int) -> PayloadTooLarge:
    if new.num_jobs > jobs:
        return PayloadTooLarge(
            f"{new.num_jobs} jobs at once; at most {jobs} may wait at all: send fewer, or raise "
            "ONDOL_MAX_QUEUED_JOBS or the project's limit (`ondol projects set`)"
        )
    if new.num_jobs == 1 and new.num_tokens > MAX_JOB_SIZE:
        return PayloadTooLarge(
            f"about {new.num_tokens} tokens; one job has {MAX_JOB_SIZE} at most: cut the input into several jobs",
            param="input",
        )
    return PayloadTooLarge(
        f"about {new.num_tokens} tokens; at most {tokens} may wait at all: cut the input into several jobs, or raise "
        "ONDOL_MAX_QUEUED_TOKENS or the project's limit (`ondol projects set`)",
        param="input" if new.num_jobs == 1 else None,
    )
