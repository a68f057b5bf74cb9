"""The gate between serving and training on one device: interactive rows go first, training keeps at least a fifth.

A small file that both sides map into memory: a look at it costs a microsecond, and neither side waits for the other.
The worker owns `GateKeeper`, the training child looks through `Gate`. Imports no torch; Linux only.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

_SIZE_BYTES = 16
_BUSY_UNTIL, _HELD_PID = 0, 1
_HEARTBEAT_S = 1.0
_POLL_S = 0.001
_MAX_WAIT_STEPS = 4.0
"""Passes' time that one pass may be kept waiting: with four, training gets a fifth of the device in the worst case."""


class GateKeeper:
    """The worker's side. Not thread-safe; each field has one writer at a time."""

    def __init__(self, path: Path) -> None:
        self._map = _map(path)

    def busy(self) -> None:
        """Say that interactive rows wait or run; holds for one second, so call it again while they do."""
        self._map.fields[_BUSY_UNTIL] = _now_ns() + int(_HEARTBEAT_S * 1e9)

    def idle(self) -> None:
        """Say that no interactive row waits."""
        self._map.fields[_BUSY_UNTIL] = 0

    def hold(self, pid: int) -> None:
        """Keep the training process `pid` from taking another step until `release`, however long that lasts."""
        self._map.fields[_HELD_PID] = pid

    def release(self) -> None:
        """Let the held process go on."""
        self._map.fields[_HELD_PID] = 0

    def close(self) -> None:
        """Unmap the file; what it says stays."""
        self._map.close()

    def __enter__(self) -> GateKeeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Gate:
    """The training child's side; `has_to_stop` ends every wait, so that a stop is not kept waiting either."""

    def __init__(
        self,
        path: Path,
        *,
        has_to_stop: Callable[[], bool] = lambda: False,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_wait` is called again and again while a wait lasts."""
        self._map = _map(path)
        self._has_to_stop = has_to_stop
        self._on_wait = on_wait
        self._pid = os.getpid()

    def pass_step(self, last_step_s: float) -> float:
        """Wait until the next step may run; the seconds waited.

        At most four times `last_step_s` (what one takes by itself, without its waiting)
        while the device is busy with interactive rows, without limit while held.
        """
        started = time.monotonic()
        limit_s = _MAX_WAIT_STEPS * last_step_s
        while not self._has_to_stop():
            waited_s = time.monotonic() - started
            if not self._is_held() and not (self._is_busy() and waited_s < limit_s):
                break
            self._on_wait()
            time.sleep(_POLL_S)
        return time.monotonic() - started

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()

    def _is_busy(self) -> bool:
        return self._map.fields[_BUSY_UNTIL] > _now_ns()

    def _is_held(self) -> bool:
        return self._map.fields[_HELD_PID] == self._pid


class _GateMap:
    """The mapped file as int64 numbers; an aligned number is written and read whole."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._mapped = mapped
        self.fields = memoryview(mapped).cast("q")

    def close(self) -> None:
        self.fields.release()
        self._mapped.close()


def _map(path: Path) -> _GateMap:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size < _SIZE_BYTES:
            os.ftruncate(descriptor, _SIZE_BYTES)
        return _GateMap(mmap.mmap(descriptor, _SIZE_BYTES))
    finally:
        os.close(descriptor)


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)
