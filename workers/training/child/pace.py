"""How fast the run is, when it will be done, and what our own code costs on top of the training."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_RECENT_STEPS = 50
_EVALUATION_SHARE = 3.0
"""A row is evaluated about so many times faster than it is trained on; used until one evaluation was timed."""


class Pace:
    """Times steps, evaluations and our own callbacks; all in seconds of the monotonic clock."""

    def __init__(self, *, rows_per_step: int, num_validation: int) -> None:
        self._rows_per_step = rows_per_step
        self._num_validation = num_validation
        self._started = time.monotonic()
        self._steps_s: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._evaluations_s: list[float] = []
        self._last_step_end: float | None = None
        self.callbacks_s = 0.0
        """Spent in our decisions, events and waiting records; without evaluations, checkpoints and the gate."""
        self.checkpoints_s = 0.0
        self.gate_s = 0.0

    def begin_steps(self) -> None:
        """The next step begins now: what lay before it (loading, evaluating, saving) is not its time."""
        self._last_step_end = time.monotonic()

    def end_step(self) -> None:
        """A step has ended."""
        now = time.monotonic()
        if self._last_step_end is not None:
            self._steps_s.append(now - self._last_step_end)
        self._last_step_end = now

    def samples_per_s(self) -> float | None:
        """Training rows a second, by the recent steps."""
        return self._rows_per_step / self._step_s() if self._steps_s else None

    def eta_s(self, *, num_steps: int, num_evaluations: int) -> float | None:
        """Seconds until so many further steps and evaluations are done; None before the first step."""
        if not self._steps_s:
            return None
        return num_steps * self._step_s() + num_evaluations * self._evaluation_s()

    def total_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Time an evaluation that ends without an error."""
        started = time.monotonic()
        yield
        self._evaluations_s.append(time.monotonic() - started)

    @contextmanager
    def callback(self) -> Iterator[None]:
        """Count what happens inside as our own cost."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.callbacks_s += time.perf_counter() - started

    def overhead(self) -> dict[str, float]:
        """The figures of the `finished` event."""
        return {
            "callbacks_s": round(self.callbacks_s, 4),
            "total_s": round(self.total_s(), 3),
            "evaluations_s": round(sum(self._evaluations_s), 3),
            "checkpoints_s": round(self.checkpoints_s, 3),
            "gate_s": round(self.gate_s, 3),
        }

    def _step_s(self) -> float:
        return max(statistics.median(self._steps_s), 1e-9)

    def _evaluation_s(self) -> float:
        if self._evaluations_s:
            return statistics.median(self._evaluations_s)
        return self._num_validation / self._rows_per_step * self._step_s() / _EVALUATION_SHARE
