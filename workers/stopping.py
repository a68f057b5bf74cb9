"""Being asked to stop before Celery listens: noted from before a node holds anything, and passed on to it.

Without this, SIGTERM ends a node that is starting at once: its lease is left to lapse, and its device process with it.
Imports nothing that takes time, so that a program can listen before its other imports.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

_ASKS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """What SIGTERM and SIGINT do until Celery's own handlers are there. Main thread only."""

    def __init__(self) -> None:
        self._asked_by: int | None = None

    @classmethod
    def listen(cls) -> StopRequest:
        """From now on the two signals are noted, and do nothing else."""
        request = cls()
        for number in _ASKS:
            signal.signal(number, request._note)
        return request

    @property
    def is_made(self) -> bool:
        """Whether this process was asked to stop."""
        return self._asked_by is not None

    def pass_on(self) -> None:
        """Send the signal that was noted, if any, once more: whoever listens now has not heard it."""
        if self._asked_by is not None:
            os.kill(os.getpid(), self._asked_by)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._asked_by = number
