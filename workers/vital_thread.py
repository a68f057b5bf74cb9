"""Threads that a worker cannot do without: when one of them fails, the process ends, and is replaced.

A worker that lives on without its dispatcher or its session keeper would hold jobs that nobody runs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import structlog

EXIT_BROKEN = 70

log = structlog.get_logger(__name__)


def vital_thread(name: str, target: Callable[[], None]) -> threading.Thread:
    """A daemon thread, not started yet, whose failure ends the process with exit code 70."""
    return threading.Thread(target=lambda: _run(name, target), name=name, daemon=True)


def _run(name: str, target: Callable[[], None]) -> None:
    try:
        target()
    except BaseException:  # the thread's edge: what it held comes back by the lapsed lease
        log.exception("worker.thread_failed", thread=name)
        os._exit(EXIT_BROKEN)
