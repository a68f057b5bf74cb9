"""A file that a process touches while its main loop turns: how a health check on the same host sees that it does.

It holds the process id, so that whoever supervises the process can end one that lives and does not turn.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

STALE_S = 15.0
"""Age at which a heartbeat no longer counts; loops that beat do so every few seconds, also in an outage of SQL."""


class Heartbeat:
    """The heartbeat of the process `name` of the data folder that `run_dir` belongs to."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self._path = run_dir / f"{name}.beat"
        self._has_begun = False

    def beat(self) -> None:
        """Say that the loop turns; call it in every round. Costs microseconds."""
        try:
            if self._has_begun:
                self._path.touch()
            else:
                self._path.write_text(f"{os.getpid()}\n", encoding="ascii")
                self._has_begun = True
        except FileNotFoundError:  # the first beat of a new data folder
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(f"{os.getpid()}\n", encoding="ascii")

    def pid(self) -> int | None:
        """The process that beats, or beat last; None if there was none."""
        try:
            return int(self._path.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):  # of a version that left the file empty
            return None

    def age_s(self) -> float | None:
        """Seconds since the last beat; None if there was none."""
        try:
            return max(0.0, time.time() - self._path.stat().st_mtime)
        except FileNotFoundError:
            return None
