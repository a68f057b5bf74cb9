"""Counting what a process has repaired by itself; kept in SQL, as the reconciler's repairs are."""

from __future__ import annotations

import structlog

from ondol.contract.errors import DatabaseUnavailable
from ondol.sql.database import Database

log = structlog.get_logger(__name__)


def count_repair(database: Database, kind: str, num: int = 1) -> None:
    """Add to the counter of a kind of repair, on the calling thread; in an outage of SQL it goes to the log alone."""
    try:
        database.write(lambda uow: uow.leaders.count_repairs(kind, num))
    except DatabaseUnavailable as exc:
        log.warning("repair.not_counted", repair=kind, num=num, reason=exc.message)
    else:
        log.warning("repair.counted", repair=kind, num=num)
