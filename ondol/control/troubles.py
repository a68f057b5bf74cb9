"""What the watchdogs look for, as far as SQL shows it: for `ondol doctor`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from ondol.contract.errors import DatabaseUnavailable
from ondol.sql.database import Database
from ondol.sql.leaders import RECONCILER
from ondol.sql.sessions import INFER
from ondol.sql.skew import SKEW_LIMIT_S
from ondol.sql.tables import messages, repairs
from ondol.sql.unit_of_work import UnitOfWork

WAITS_LONG_S = 30.0
RECENT_S = 600.0


@dataclass(frozen=True, slots=True)
class Troubles:
    """What is wrong now, and what was repaired in the last ten minutes: totals since ever, by kind."""

    leaderless_s: float = 0.0
    has_led: bool = True
    """Whether a reconciler has ever led, or nobody works here yet."""
    idle_workers: Sequence[str] = ()
    """Ready workers that take nothing, although work has waited for half a minute."""
    skewed_workers: Mapping[str, float] = field(default_factory=dict)
    """Workers whose clock is further from the database's than it should be: by how many seconds it is ahead."""
    recent_repairs: Mapping[str, int] = field(default_factory=dict)


def find_troubles(url: str) -> Troubles:
    """Look once; DatabaseUnavailable if it does not answer, or has no schema that fits. Changes nothing."""
    database = Database(url, pool_size=1)
    try:
        return database.read(_look)
    except SQLAlchemyError as exc:
        raise DatabaseUnavailable(f"the repairs cannot be read: {type(exc).__name__}") from exc
    finally:
        database.close()


def _look(uow: UnitOfWork) -> Troubles:
    recent = sa.select(repairs.c.kind, repairs.c.total).where(repairs.c.updated_at > uow.now - RECENT_S)
    leaderless_s = uow.leaders.leaderless_s(RECONCILER)
    return Troubles(
        leaderless_s=leaderless_s or 0.0,
        has_led=leaderless_s is not None or not uow.sessions.open_sessions(),
        idle_workers=_idle_workers(uow),
        skewed_workers={
            s.worker: s.clock_ahead_s
            for s in uow.sessions.open_sessions()
            if s.clock_ahead_s is not None and abs(s.clock_ahead_s) > SKEW_LIMIT_S
        },
        recent_repairs={row.kind: row.total for row in uow.conn.execute(recent.order_by(repairs.c.kind))},
    )


def _idle_workers(uow: UnitOfWork) -> list[str]:
    ready = {s.worker for s in uow.sessions.open_sessions() if s.is_ready and s.role == INFER}
    columns = sa.select(messages.c.worker, messages.c.claimed_at, messages.c.rung_at)
    out = uow.conn.execute(columns.where(messages.c.worker.in_(ready))).all()
    unheard = {row.worker for row in out if row.claimed_at is None and row.rung_at < uow.now - WAITS_LONG_S}
    with_nothing = ready - {row.worker for row in out} if uow.ringing.oldest_waiting_s() > WAITS_LONG_S else set()
    return sorted(unheard | with_nothing)
