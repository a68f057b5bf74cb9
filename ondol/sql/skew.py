"""How far this process's clock is from the database's: seen whenever a transaction reads the database's clock.

Leases, times and deadlines go by the database's clock; what goes by a process's own is wrong by this much.
"""

from __future__ import annotations

import threading
import time

import structlog

SKEW_LIMIT_S = 2.0
"""More than this is told in the log and by `ondol doctor`."""
_GOOD_ROUND_TRIP_S = 0.25
_TOLD_EVERY_S = 600.0

log = structlog.get_logger(__name__)


class ClockSkew:
    """The newest good look at both clocks. Thread-safe; costs no statement of its own."""

    def __init__(self) -> None:
        self._ahead_s: float | None = None
        self._lock = threading.Lock()
        self._told_at: float | None = None

    @property
    def ahead_s(self) -> float | None:
        """This process's clock minus the database's, in seconds; None where there was no look yet."""
        return self._ahead_s

    def saw(self, database_at: float, *, asked_at: float, answered_at: float) -> None:
        """The database's clock said `database_at` between these two times of this process's clock.

        A look is wrong by half of what it took at most; one that took long is left out.
        """
        if not 0 <= answered_at - asked_at <= _GOOD_ROUND_TRIP_S:
            return
        self._ahead_s = (asked_at + answered_at) / 2 - database_at
        if abs(self._ahead_s) > SKEW_LIMIT_S:
            self._tell(self._ahead_s)

    def is_one_with_the_database(self) -> None:
        """The database has no clock but this host's."""
        self._ahead_s = 0.0

    def _tell(self, ahead_s: float) -> None:
        with self._lock:
            now = time.monotonic()
            if self._told_at is not None and now - self._told_at < _TOLD_EVERY_S:
                return
            self._told_at = now
        log.warning("clock.skewed", ahead_s=round(ahead_s, 3), limit_s=SKEW_LIMIT_S)
