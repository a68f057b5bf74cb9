"""SIGTERM asks for a checkpoint and an end at the next step boundary."""

from __future__ import annotations

import signal
from types import FrameType


class StopRequest:
    """Set by SIGTERM once `listen` was called; the training loop looks at it between steps."""

    def __init__(self) -> None:
        self.is_set = False

    def listen(self) -> None:
        """Take SIGTERM from now on; main thread only."""
        signal.signal(signal.SIGTERM, self._set)

    def _set(self, _number: int, _frame: FrameType | None) -> None:
        self.is_set = True
