"""`ondol up` ends a program whose process lives and whose loop stands still, so that it is started again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from ondol.control.heartbeat import Heartbeat

WATCH_EVERY_S = 3.0
STUCK_S = 20.0
"""Longer than a round takes while SQL or Redis is away; doubled for a program each time that it was ended for it."""


class LoopWatch:
    """Looks at the heartbeats of the programs `names`; call `look` every few seconds. `say` tells the person."""

    def __init__(
        self, run_dir: Path, names: Sequence[str], say: Callable[[str], None], *, stuck_s: float = STUCK_S
    ) -> None:
        self._beats = {name: Heartbeat(run_dir, name) for name in names}
        self._limits_s = dict.fromkeys(names, stuck_s)
        self._seen_stale: dict[str, int] = {}
        self._say = say

    def look(self) -> None:
        """End what two looks in a row found stuck: one may come of this whole host having stood still."""
        for name, heartbeat in self._beats.items():
            age_s, pid = heartbeat.age_s(), heartbeat.pid()
            if age_s is None or pid is None or age_s <= self._limits_s[name]:
                self._seen_stale.pop(name, None)
            elif self._seen_stale.get(name) != pid:
                self._seen_stale[name] = pid
            elif self._end(pid):
                del self._seen_stale[name]
                self._limits_s[name] *= 2
                self._say(f"The {name} lived and stood still for {age_s:.0f} s: it was ended and is started again.")

    def _end(self, pid: int) -> bool:
        """SIGKILL the process if it is one of ours; whether it was there."""
        ours = {process.pid: process for process in psutil.Process().children(recursive=True)}
        process = ours.get(pid)
        if process is None:
            return False
        process.kill()
        return True
