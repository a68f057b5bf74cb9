"""Redis's clock, by which the deadlines of calls travel: the hosts of api and worker need not agree about the time."""

from __future__ import annotations

import time

MEASURE_EVERY_S = 5.0
_GOOD_ROUND_TRIP_S = 0.25
"""A measurement is wrong by half its round trip at most; a worse one is taken only where there is none yet."""


class RedisClock:
    """Turns times of this process into times of Redis and back. For one thread; who uses it asks Redis for `TIME`.

    Between two measurements it goes with this host's monotonic clock, so that a clock that is set does not matter.
    """

    def __init__(self) -> None:
        self._ahead_s: float | None = None
        """Redis's time minus the monotonic clock."""
        self._is_fresh_until = 0.0

    @property
    def is_known(self) -> bool:
        """Whether it was ever measured."""
        return self._ahead_s is not None

    @property
    def is_stale(self) -> bool:
        """Whether to measure again."""
        return time.monotonic() >= self._is_fresh_until

    def learn(self, answer: tuple[int, int], *, asked_at: float) -> None:
        """Take in what `TIME` has answered just now: seconds and microseconds. `asked_at`: by the monotonic clock."""
        now = time.monotonic()
        self._is_fresh_until = now + MEASURE_EVERY_S
        if self._ahead_s is None or now - asked_at <= _GOOD_ROUND_TRIP_S:
            self._ahead_s = answer[0] + answer[1] / 1e6 - (asked_at + now) / 2

    def by_redis(self, at: float) -> float:
        """A time of this process (seconds since the epoch) by Redis's clock; it must be known."""
        assert self._ahead_s is not None
        return at - time.time() + time.monotonic() + self._ahead_s

    def by_own(self, at: float) -> float:
        """A time by Redis's clock as this process's clock has it; it must be known."""
        assert self._ahead_s is not None
        return at - self._ahead_s - time.monotonic() + time.time()
