"""Looking at the whole system for those who scrape; an outage of SQL leaves a gap, not an error."""

from __future__ import annotations

import structlog

from ondol.contract.errors import DatabaseUnavailable
from ondol.sql.database import Database
from ondol.sql.measures import Measures, take_measures

log = structlog.get_logger(__name__)


def measured(database: Database) -> Measures | None:
    """What a look finds; None while SQL is away. Blocks."""
    try:
        return database.read(take_measures)
    except DatabaseUnavailable as exc:
        log.warning("metrics.not_measured", reason=exc.message)
        return None
