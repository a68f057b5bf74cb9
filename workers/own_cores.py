"""Keeping this process to its cores, the threads that libraries have started while they were imported included."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path


def keep_to_cores(cores: Collection[int]) -> None:
    """Set the CPU affinity of every thread of this process; threads to come inherit it. OSError for cores not ours."""
    os.sched_setaffinity(0, cores)
    for task in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(task.name), cores)
        except ProcessLookupError:
            continue  # the thread ended meanwhile
