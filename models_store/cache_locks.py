"""Locks of the local cache: file locks, so that a process that dies lets go of everything it held."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock `path` alone, against other threads and processes; blocks until it is free."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def exclusive_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock `path` alone if nobody holds it now; gives whether it is held."""
    descriptor = _open(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


class Pins:
    """What this process uses now: shared locks, counted, so that no process removes a pinned entry. Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: dict[Path, tuple[int, int]] = {}

    def add(self, path: Path) -> None:
        """Pin once more; blocks only while another process removes the entry."""
        with self._guard:
            descriptor, count = self._held.get(path, (-1, 0))
            if count == 0:
                descriptor = _open(path)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            self._held[path] = (descriptor, count + 1)

    def remove(self, path: Path) -> None:
        """Take one pin back; ValueError if there is none."""
        with self._guard:
            descriptor, count = self._held.pop(path, (-1, 0))
            if count == 0:
                raise ValueError(f"{path.name} is not pinned")
            if count > 1:
                self._held[path] = (descriptor, count - 1)
            else:
                os.close(descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
