"""What is put right in a database that was copied while Ondol ran: those who held jobs in it do not hold them here."""

from __future__ import annotations

import sqlalchemy as sa

from ondol.sql.leaders import RESIGNED
from ondol.sql.tables import jobs, leaders, messages, sessions
from ondol.sql.unit_of_work import UnitOfWork


def hand_everything_back(uow: UnitOfWork, *, reason: str) -> int:
    """Queue again what ran when the copy was made, losing nothing and counting no loss; how many jobs.

    Sessions end, messages are forgotten (Redis knows none of them, or others), leads are free, and notices that
    somebody was delivering come due again.
    """
    query = sa.select(sessions.c.id).where(sessions.c.ended_at.is_(None)).order_by(sessions.c.id)
    num = 0
    for session_id in uow.conn.execute(query).scalars().all():
        num += len(uow.sessions.stop(session_id, reason=reason))
    num += len(uow.attempts.take_back_forgotten())
    uow.conn.execute(sa.update(jobs).where(jobs.c.message_id.is_not(None)).values(message_id=None))
    uow.conn.execute(sa.delete(messages))
    uow.conn.execute(
        sa.update(leaders).where(leaders.c.name == "reconciler").values(expires_at=uow.now, holder=RESIGNED)
    )
    return num
