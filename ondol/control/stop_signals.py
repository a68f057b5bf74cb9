"""Waiting that ends at once when this process is asked to stop or a child of it ends."""

from __future__ import annotations

import select
import signal
import socket
from types import FrameType, TracebackType
from typing import Self

_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignals:
    """Within the `with` block SIGTERM, SIGINT and SIGHUP only set `is_stop_requested`. Main thread only."""

    def __init__(self) -> None:
        self.is_stop_requested = False
        self._reader, self._writer = socket.socketpair()
        self._earlier: dict[int, object] = {}
        self._earlier_fd = -1

    def __enter__(self) -> Self:
        for sock in (self._reader, self._writer):
            sock.setblocking(False)
        self._earlier_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (*_STOP, signal.SIGCHLD):
            self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave, it takes back
        signal.set_wakeup_fd(self._earlier_fd)
        self._reader.close()
        self._writer.close()

    def wait(self, limit_s: float) -> bool:
        """Block until a signal comes or the limit is over; whether a stop was requested at any time."""
        if not self.is_stop_requested:
            select.select([self._reader], [], [], limit_s)
            self._drain()
        return self.is_stop_requested

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number in _STOP:
            self.is_stop_requested = True

    def _drain(self) -> None:
        try:
            while self._reader.recv(64):
                pass
        except BlockingIOError:
            return
