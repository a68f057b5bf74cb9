"""The serving side of a device that also trains: tells the trainer while interactive rows wait or run."""

from __future__ import annotations

import threading
from pathlib import Path

from workers.training.gate import GateKeeper
from workers.vital_thread import vital_thread

_HEARTBEAT_S = 0.4


class ServingGate:
    """Thread-safe count of interactive works. Training waits while there are any; what a dead worker said expires."""

    def __init__(self, path: Path) -> None:
        self._keeper = GateKeeper(path)
        self._num_open = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = vital_thread("serving-gate", self._loop)

    def start(self) -> None:
        """Begin to repeat what the gate says for as long as it holds."""
        self._thread.start()

    def stop(self) -> None:
        """Let training go on."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout=5)
        self._keeper.idle()
        self._keeper.close()

    def enter(self, num_works: int) -> None:
        """So many interactive works more wait or run."""
        self._count(num_works)

    def leave(self, num_works: int) -> None:
        """So many of them are over."""
        self._count(-num_works)

    def _count(self, change: int) -> None:
        if not change:
            return
        with self._changed:
            was_open = self._num_open > 0
            self._num_open += change
            if self._stopping:
                return
            if self._num_open > 0 and not was_open:
                self._keeper.busy()
                self._changed.notify_all()
            elif self._num_open == 0:
                self._keeper.idle()

    def _loop(self) -> None:
        with self._changed:
            while not self._stopping:
                self._changed.wait(_HEARTBEAT_S if self._num_open else None)
                if self._num_open and not self._stopping:
                    self._keeper.busy()
