"""Leadership by lease, fenced by a term; and the counters of repairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ondol.sql.tables import leaders, repairs

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork


class LeaderRepository:
    """At most one holder a name until its lease runs out, by the database's clock."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn

    def lead(self, name: str, *, holder: str, lease_s: float) -> bool:
        """Take or keep the lead; False while another's lease runs. Call it in every transaction of a leader."""
        now = self._uow.now
        statement = (
            sa.update(leaders)
            .where(leaders.c.name == name, sa.or_(leaders.c.holder == holder, leaders.c.expires_at <= now))
            .values(
                term=leaders.c.term + sa.case((leaders.c.holder == holder, 0), else_=1),
                holder=holder,
                expires_at=now + lease_s,
            )
        )
        if self._conn.execute(statement).rowcount == 1:
            return True
        insert = sqlite.insert if self._uow.is_sqlite else postgresql.insert
        first = insert(leaders).values(name=name, holder=holder, term=1, expires_at=now + lease_s)
        return self._conn.execute(first.on_conflict_do_nothing().returning(leaders.c.name)).one_or_none() is not None

    def resign(self, name: str, *, holder: str) -> None:
        """Give the lead up, so that another need not wait for the lease."""
        self._conn.execute(
            sa.update(leaders).where(leaders.c.name == name, leaders.c.holder == holder).values(expires_at=0.0)
        )

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
