"""That the training is alive, said once a second while steps are taken, and whenever it does something else."""

from __future__ import annotations

import time
from collections import deque

from workers.training.child.events import EventWriter

EVERY_S = 1.0
_RECENT_PASSES = 50

STEPS, BETWEEN = "steps", "between"


class Pulse:
    """Used from the training thread. `longest_s` of a pulse: the longest of the recent passes, None before the first.

    A pass is timed from its begin to the next one's, waiting at the gate apart.
    """

    def __init__(self, events: EventWriter) -> None:
        self._events = events
        self._phase = BETWEEN
        self._said_at = 0.0
        self._has_told_pace = False
        self._began_at: float | None = None
        self._passes_s: deque[float] = deque(maxlen=_RECENT_PASSES)

    def end_pass(self) -> None:
        """What was begun by the last `begin_pass` is over; the gate is next."""
        if self._began_at is not None:
            self._passes_s.append(time.monotonic() - self._began_at)
            self._began_at = None

    def begin_pass(self) -> None:
        """A forward and backward pass begins."""
        self._began_at = time.monotonic()
        self.beat(STEPS)

    def waits(self) -> None:
        """The gate is shut; call it again and again."""
        self.beat(self._phase)

    def between(self) -> None:
        """No steps from now on, until the next pass: evaluating, saving, publishing."""
        self.end_pass()
        self.beat(BETWEEN)

    def beat(self, phase: str) -> None:
        """Say which phase this is: at once when it has changed, else once a second."""
        now = time.monotonic()
        is_news = phase != self._phase or (self._passes_s and not self._has_told_pace)
        if not is_news and now - self._said_at < EVERY_S:
            return
        self._phase, self._said_at, self._has_told_pace = phase, now, bool(self._passes_s)
        self._events.send("pulse", phase=phase, longest_s=max(self._passes_s, default=None))
