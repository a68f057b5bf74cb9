"""The reconciler: the one acting leader repairs what was lost. Each repair is counted; all of them may run twice."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import structlog
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from ondol.broker.connection import connect
from ondol.broker.dead_letters import DeadLetters
from ondol.broker.wake import WakeBus
from ondol.contract.errors import BrokerUnavailable, DatabaseUnavailable
from ondol.contract.ids import new_id
from ondol.control.purging import Purger, Retention
from ondol.control.ringer import Ringer
from ondol.metrics.roles import ReconcilerMetrics
from ondol.sql.database import Database
from ondol.sql.leaders import RECONCILER
from ondol.sql.unit_of_work import UnitOfWork

log = structlog.get_logger(__name__)

LEADER = RECONCILER
CANARY_KEY = "ondol:canary"
_REDIS_LIMIT_S = 2.0
_SWEEP_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class ReconcilerLimits:
    """How patient the reconciler is, in seconds."""

    rung_unclaimed_s: float = 4.0
    leader_lease_s: float = 6.0
    session_lease_s: float = 6.0
    dead_letters_s: float | None = None
    """Age at which dead letters are deleted; None: only newer ones push them out."""


class Reconciler:
    """`tick()` once a second or so, from one thread."""

    def __init__(
        self,
        *,
        database: Database,
        redis_url: str,
        ringer: Ringer,
        wake: WakeBus,
        limits: ReconcilerLimits,
        metrics: ReconcilerMetrics | None = None,
        retention: Retention | None = None,
    ) -> None:
        self._metrics = metrics or ReconcilerMetrics()
        self._database = database
        # Few seconds and no second try: while Redis stands still, what needs SQL alone must go on, under a lease.
        self._redis = connect(redis_url, answer_limit_s=_REDIS_LIMIT_S, retry=Retry(NoBackoff(), 0))
        self._letters = DeadLetters(redis_url)
        self._next_sweep_at = 0.0
        self._ringer = ringer
        self._wake = wake
        self._limits = limits
        self._holder = new_id("rec")
        self._was_leader = False
        self._purger = Purger(
            database, retention=retention or Retention(), lead=self._lead, metrics=self._metrics.purges
        )
        self._believe_until = 0.0
        """By the monotonic clock: until then no lease is called lapsed, so that everybody can renew after an outage."""

    def tick(self) -> bool:
        """One round of repairs; False when another leads. DatabaseUnavailable if SQL is away."""
        asked_at = time.monotonic()
        try:
            late = self._database.write(self._expire)
        except DatabaseUnavailable:
            self._believe()
            raise
        self._believe_if_slow(asked_at)
        is_leader = late is not None
        if is_leader != self._was_leader:
            log.info("reconciler.leads" if is_leader else "reconciler.follows", holder=self._holder)
            self._was_leader = is_leader
            self._metrics.leads.set(is_leader)
            self._metrics.letters.set(0)
        if late is None:
            return False
        self._wake.wake(late)
        found = self._redis_lost_its_data()
        has_lost_messages = found is True
        asked_at = time.monotonic()
        moved = self._database.write(
            lambda uow: self._repair(uow, has_lost_messages=has_lost_messages, asked_at=asked_at)
        )
        self._wake.wake(moved)
        if has_lost_messages:
            self._set_canary()
        if found is not None:  # else each message would be waited for in vain
            self._ringer.ring()
            self._sweep_letters()
        self._purge()
        self._metrics.rounds.inc()
        return True

    def _sweep_letters(self) -> None:
        if time.monotonic() < self._next_sweep_at:
            return
        self._next_sweep_at = time.monotonic() + _SWEEP_EVERY_S
        try:
            self._metrics.letters.set(self._letters.sweep(self._limits.dead_letters_s))
        except BrokerUnavailable as exc:
            log.warning("reconciler.letters_not_swept", reason=exc.message)

    def _purge(self) -> None:
        """An edge: what cannot be purged must not stand in the way of repairs."""
        try:
            self._purger.purge()
        except DatabaseUnavailable:
            raise
        except Exception:
            log.exception("purge.failed")

    @property
    def is_leader(self) -> bool:
        """Whether this reconciler was the acting one in its last round."""
        return self._was_leader

    def close(self) -> None:
        """Give the lead up."""
        try:
            self._database.write(lambda uow: uow.leaders.resign(LEADER, holder=self._holder))
        except DatabaseUnavailable as exc:
            log.warning("reconciler.not_resigned", reason=exc.message)
        self._letters.close()
        self._redis.close()

    def _believe(self) -> None:
        self._believe_until = time.monotonic() + self._limits.session_lease_s

    def _believe_if_slow(self, asked_at: float) -> None:
        """SQL stood still while it was asked: those who renew have waited as we did."""
        if time.monotonic() - asked_at > self._limits.session_lease_s / 2:
            self._believe()

    def _lead(self, uow: UnitOfWork) -> bool:
        return uow.leaders.lead(LEADER, holder=self._holder, lease_s=self._limits.leader_lease_s)

    def _expire(self, uow: UnitOfWork) -> list[str] | None:
        """Fail what is late; the jobs, or None where another leads.

        In a transaction of its own: whoever claims locks a session and a message before their jobs, and the repairs
        must not ask for those while they hold jobs.
        """
        if not self._lead(uow):
            return None
        late = uow.jobs.expire_deadlines()
        _count_repair(uow, "deadline_exceeded", len(late))
        return late

    def _repair(self, uow: UnitOfWork, *, has_lost_messages: bool, asked_at: float) -> list[str]:
        if not self._lead(uow):
            return []
        self._believe_if_slow(asked_at)
        moved: list[str] = []
        lapsed = uow.sessions.lapse() if time.monotonic() >= self._believe_until else []
        for session_id, worker in lapsed:
            taken = uow.attempts.take_back(session_id)
            moved += taken
            uow.after_commit(partial(self._count_lost, uow.jobs.kinds_of(taken)))
            log.warning("repair.session_lapsed", session_id=session_id, worker=worker, num_jobs=len(taken))
        moved += uow.attempts.take_back_forgotten()
        if has_lost_messages:
            lost = uow.ringing.recall_unclaimed()
        else:
            lost = uow.ringing.recall_unclaimed(rung_before=uow.now - self._limits.rung_unclaimed_s)
        orphans = uow.ringing.recall_orphans()
        for kind, num in (
            ("session_lapsed", len(lapsed)),
            ("job_taken_back", len(moved)),
            ("redis_data_lost" if has_lost_messages else "message_lost", lost),
            ("message_orphaned", orphans),
        ):
            _count_repair(uow, kind, num)
        return moved

    def _count_lost(self, num_by_kind: Mapping[str, int]) -> None:
        for kind, num in num_by_kind.items():
            self._metrics.attempts.ended(kind, "lost", num)

    def _redis_lost_its_data(self) -> bool | None:
        """Whether the canary is gone: then every message that nobody claimed is gone too. None: Redis is away."""
        try:
            return not self._redis.exists(CANARY_KEY)
        except (RedisError, OSError) as exc:
            log.warning("reconciler.redis_unavailable", reason=str(exc)[:200])
            return None

    def _set_canary(self) -> None:
        try:
            self._redis.set(CANARY_KEY, self._holder)
        except (RedisError, OSError) as exc:
            log.warning("reconciler.canary_not_set", reason=str(exc)[:200])


def _count_repair(uow: UnitOfWork, kind: str, num: int) -> None:
    uow.leaders.count_repairs(kind, num)
    if num:
        log.warning("repair.counted", repair=kind, num=num)
