"""Readiness: whether the parts that admission needs answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from api.threads import in_check
from ondol.broker.connection import connect_async
from ondol.contract.errors import BrokerUnavailable, DatabaseUnavailable, NotReady, OndolError
from ondol.sql import migrate
from ondol.sql.database import Database
from ondol.sql.leaders import RECONCILER
from ondol.sql.skew import SKEW_LIMIT_S

CHECK_LIMIT_S = 3.0
LEADERLESS_LIMIT_S = 30.0


@dataclass(slots=True)
class ReadinessProbe:
    """Asks the parts that admission needs. A schema that was once the newest is not looked at again."""

    database: Database
    redis_url: str
    _has_schema: bool = field(default=False, init=False)
    _began_at: float = field(default_factory=time.monotonic, init=False)

    async def check(self) -> dict[str, str | None]:
        """What is wrong with each part; None where nothing is."""
        checks = {"database": in_check(self._check_database), "redis": self._check_redis()}
        found = await asyncio.gather(*(_outcome(check) for check in checks.values()))
        return dict(zip(checks, found, strict=True))

    async def troubles(self) -> dict[str, str | None]:
        """What is wrong beside what admission needs: work is accepted, and may wait for long."""
        reconciler = await _outcome(in_check(self._check_reconciler))
        found = {"reconciler": reconciler, "clock": self._check_clock()}
        return {part: wrong for part, wrong in found.items() if wrong is not None}

    def _check_clock(self) -> str | None:
        ahead_s = self.database.clock.ahead_s
        if ahead_s is None or abs(ahead_s) <= SKEW_LIMIT_S:
            return None
        return f"this host's clock is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} the database's"

    def _check_reconciler(self) -> None:
        leaderless_s = self.database.read(lambda uow: uow.leaders.leaderless_s(RECONCILER))
        if leaderless_s is None:  # nobody has ever led: for as long as this process knows
            leaderless_s = time.monotonic() - self._began_at
        if leaderless_s > LEADERLESS_LIMIT_S:
            raise NotReady(f"no reconciler has led for {leaderless_s:.0f} s: what is lost is not repaired; start one")

    def _check_database(self) -> None:
        self.database.ping()
        if self._has_schema:
            return
        try:
            current, newest = migrate.current(self.database.url), migrate.newest()
        except SQLAlchemyError as exc:
            raise DatabaseUnavailable(f"the schema cannot be read: {type(exc).__name__}") from exc
        is_newer = current is not None and migrate.is_of_newer_release(current)
        if current != newest and not is_newer:  # what a newer release has added is none of this one's business
            raise NotReady(f"the schema is at {current or 'nothing'}, not at {newest}; run `ondol db upgrade`")
        self._has_schema = True

    async def _check_redis(self) -> None:
        client = connect_async(self.redis_url)
        try:
            await client.ping()
        except (RedisError, OSError) as exc:
            raise BrokerUnavailable(f"Redis does not answer: {str(exc)[:200]}") from exc
        finally:
            await client.aclose()


async def _outcome(check: Awaitable[None]) -> str | None:
    try:
        await asyncio.wait_for(check, CHECK_LIMIT_S)
    except OndolError as exc:
        return exc.message
    except TimeoutError:
        return f"no answer within {CHECK_LIMIT_S:g} s"
    return None
