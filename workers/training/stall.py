"""When a training that says nothing is taken for hung: judged by what it said of its own pace.

While steps are taken the child says so once a second, also when it waits at the gate. Between them, while it loads,
evaluates, saves or publishes, it may be silent for long: then only a process that uses no CPU time either is hung.
Silence is counted in looks, a second at most each: a node that was frozen has missed nothing while it stood still.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_LOOK_S = 1.0
_STEPS = 10.0
_BETWEEN = 6.0
_BUSY_SHARE = 0.01
"""Of a core's time, under which a process does nothing."""


class StallWatch:
    """One life of a child; one thread uses it. `cpu_s`: seconds of CPU time that the child has used, None if unknown.

    `stall_s`: silence that is borne at least while steps are taken.
    """

    def __init__(self, stall_s: float, *, cpu_s: Callable[[], float | None], now: float) -> None:
        self._stall_s = stall_s
        self._cpu_s = cpu_s
        self._looked_at = now
        self._used_before_s = cpu_s()
        self._silent_s = 0.0
        self._is_stepping = False
        self._longest_s: float | None = None

    def heard(self, event: dict[str, Any]) -> None:
        """The child has said something."""
        self._silent_s = 0.0
        self._used_before_s = self._cpu_s()
        if event["event"] == "pulse":
            self._is_stepping = event["phase"] == "steps"
            self._longest_s = event.get("longest_s")

    def look(self, now: float) -> str | None:
        """Why the child is taken for hung; None while it is not. Call it often, also when nothing was heard."""
        passed_s, self._looked_at = min(now - self._looked_at, _LOOK_S), now
        self._silent_s += passed_s
        if self._is_stepping and self._longest_s is not None:
            limit_s = max(self._stall_s, _STEPS * self._longest_s)
            if self._silent_s > limit_s:
                return f"no step for {self._silent_s:.0f} s, where none took longer than {self._longest_s:.2f} s"
            return None
        if self._has_worked():
            self._silent_s = 0.0
        if self._silent_s > _BETWEEN * self._stall_s:
            return f"neither a word nor any work for {self._silent_s:.0f} s"
        return None

    def _has_worked(self) -> bool:
        """Whether it used CPU time in this silence; what cannot be seen counts as work."""
        used_s, before_s = self._cpu_s(), self._used_before_s
        is_work = used_s is None or before_s is None or used_s - before_s > _BUSY_SHARE * self._silent_s
        if is_work:
            self._used_before_s = used_s
        return is_work
