"""Leadership by lease, fenced by a term; and the counters of repairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ondol.sql.tables import leaders, repairs

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork

RECONCILER = "reconciler"
"""The name under which reconcilers lead."""
LAPSED = "leader_lapsed"
_PLAUSIBLE_LEASES = 10.0
"""A lease that runs so many times longer than one can was given by a clock that has been set back since."""
RESIGNED = ""


class LeaderRepository:
    """At most one holder a name until its lease runs out, by the database's clock."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn

    def lead(self, name: str, *, holder: str, lease_s: float) -> bool:
        """Take or keep the lead; False while another's lease runs. Call it in every transaction of a leader.

        Taking it over from one that has not resigned is a repair, and counted.
        """
        now = self._uow.now
        before = self._conn.execute(sa.select(leaders.c.holder).where(leaders.c.name == name)).scalar_one_or_none()
        is_over = sa.or_(leaders.c.expires_at <= now, leaders.c.expires_at > now + _PLAUSIBLE_LEASES * lease_s)
        statement = (
            sa.update(leaders)
            .where(leaders.c.name == name, sa.or_(leaders.c.holder == holder, is_over))
            .values(
                term=leaders.c.term + sa.case((leaders.c.holder == holder, 0), else_=1),
                holder=holder,
                expires_at=now + lease_s,
            )
        )
        if self._conn.execute(statement).rowcount == 1:
            self.count_repairs(LAPSED, int(name == RECONCILER and before not in (holder, RESIGNED)))
            return True
        insert = sqlite.insert if self._uow.is_sqlite else postgresql.insert
        first = insert(leaders).values(name=name, holder=holder, term=1, expires_at=now + lease_s)
        return self._conn.execute(first.on_conflict_do_nothing().returning(leaders.c.name)).one_or_none() is not None

    def resign(self, name: str, *, holder: str) -> None:
        """Give the lead up, so that another need not wait for the lease."""
        self._conn.execute(
            sa.update(leaders)
            .where(leaders.c.name == name, leaders.c.holder == holder)
            .values(expires_at=self._uow.now, holder=RESIGNED)
        )

    def leaderless_s(self, name: str) -> float | None:
        """How long nobody has led, by the database's clock; 0 while somebody does, None if nobody ever did."""
        expires_at = self._conn.execute(
            sa.select(leaders.c.expires_at).where(leaders.c.name == name)
        ).scalar_one_or_none()
        return None if expires_at is None else max(0.0, self._uow.now - expires_at)

    def count_repairs(self, kind: str, num: int) -> None:
        """Add to the counter of a kind of repair."""
        if num == 0:
            return
        insert = sqlite.insert if self._uow.is_sqlite else postgresql.insert
        statement = insert(repairs).values(kind=kind, total=num, updated_at=self._uow.now)
        self._conn.execute(
            statement.on_conflict_do_update(
                index_elements=["kind"], set_={"total": repairs.c.total + num, "updated_at": self._uow.now}
            )
        )

    def repair_counts(self) -> dict[str, int]:
        """All counters."""
        return {row.kind: row.total for row in self._conn.execute(sa.select(repairs.c.kind, repairs.c.total))}
