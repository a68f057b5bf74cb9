"""A file that a process touches while its main loop turns: how a health check on the same host sees that it does."""

from __future__ import annotations

import time
from pathlib import Path

STALE_S = 15.0
"""Age at which a heartbeat no longer counts; loops that beat do so every few seconds, also in an outage of SQL."""


class Heartbeat:
    """The heartbeat of the process `name` of the data folder that `run_dir` belongs to."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self._path = run_dir / f"{name}.beat"

    def beat(self) -> None:
        """Say that the loop turns; call it in every round. Costs microseconds."""
        try:
            self._path.touch()
        except FileNotFoundError:  # the first beat of a new data folder
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()

    def age_s(self) -> float | None:
        """Seconds since the last beat; None if there was none."""
        try:
            return max(0.0, time.time() - self._path.stat().st_mtime)
        except FileNotFoundError:
            return None
