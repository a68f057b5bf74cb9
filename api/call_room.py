"""How many calls one process, and one project in it, may have waiting at workers, and when to come back."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ondol.contract.errors import Overloaded

RATE_WINDOW_S = 10.0
MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1.0, 60.0
_MAX_NOTED = 10_000
"""Moments that are kept; where more come within the window, the rate is that of the last so many."""


class CallRoom:
    """Counts the calls that wait. One event loop. `clock` gives monotonic seconds."""

    def __init__(self, *, most: int, most_of_project: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._most_of_project = most_of_project
        self._clock = clock
        self._waiting: Counter[str] = Counter()
        self._num = 0
        self._ended: deque[float] = deque(maxlen=_MAX_NOTED)
        self._refused: deque[float] = deque(maxlen=_MAX_NOTED)

    @contextmanager
    def hold(self, project_id: str) -> Iterator[None]:
        """Room for one call of the project while the block runs; Overloaded if there is none.

        It says to come back when the workers have answered as many calls as were refused in the last second.
        """
        if self._waiting[project_id] >= self._most_of_project:
            raise self._refusal(f"{self._most_of_project} calls of this project", "ONDOL_PROJECT_MAX_CALLS_WAITING")
        if self._num >= self._most:
            raise self._refusal(f"{self._most} calls", "ONDOL_MAX_CALLS_WAITING")
        self._waiting[project_id] += 1
        self._num += 1
        try:
            yield
        finally:
            self._ended.append(self._clock())
            self._num -= 1
            self._waiting[project_id] -= 1
            if not self._waiting[project_id]:
                del self._waiting[project_id]

    def _refusal(self, what: str, setting: str) -> Overloaded:
        now = self._clock()
        self._refused.append(now)
        _forget(self._refused, now - 1.0)
        _forget(self._ended, now - RATE_WINDOW_S)
        wait_s = MAX_RETRY_AFTER_S
        if self._ended:
            wait_s = len(self._refused) * (now - self._ended[0]) / len(self._ended)
        return Overloaded(
            f"{what} wait here for their answers already, and no more may: come back later, submit a job, or raise "
            f"{setting}",
            retry_after_s=min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, wait_s)),
        )


def _forget(moments: deque[float], before: float) -> None:
    """Drop what is older of the moments, which are in order: each once, however often that is asked for."""
    while moments and moments[0] < before:
        moments.popleft()
