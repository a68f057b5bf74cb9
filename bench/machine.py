"""The machine as a benchmark sees it: cores, pinning, CPU seconds and memory of process trees, its description."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

MIB = 1024**2
_VERSIONS = ("torch", "transformers", "sentence-transformers", "tokenizers", "celery", "openvino", "psycopg")


def cores() -> tuple[int, ...]:
    """The cores this process may use, in order."""
    return tuple(sorted(os.sched_getaffinity(0)))


def split_cores() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cores for a server, and one apart for whoever asks it; the same core twice on a machine that has one."""
    found = cores()
    return (found[:-1], found[-1:]) if len(found) > 1 else (found, found)


@contextlib.contextmanager
def pinned(to: tuple[int, ...]) -> Iterator[None]:
    """Processes that this thread starts inside the block run on these cores; so does the thread itself meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, to)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def describe() -> dict[str, Any]:
    """What the figures depend on, for the result file."""
    return {
        "cpu": _cpu_name(),
        "num_cores": len(cores()),
        "memory_gib": round(psutil.virtual_memory().total / 1024**3, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: found for name in _VERSIONS if (found := _version(name))},
        "load_average_at_start": os.getloadavg()[0],
        "measured_at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


@dataclass(frozen=True, slots=True)
class Seen:
    """One process of a tree: what it is called, CPU seconds of itself, resident MiB."""

    name: str
    pid: int
    cpu_s: float
    rss_mib: float


def processes(root_pid: int) -> list[Seen]:
    """The process and its descendants, as `api.main`, `workers.main`, `workers.device`, `redis-server`, …"""
    try:
        root = psutil.Process(root_pid)
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    found = []
    for process in tree:
        with contextlib.suppress(psutil.Error):  # it ended between the listing and the look
            times = process.cpu_times()
            name, rss = _short_name(process), process.memory_info().rss / MIB
            found.append(Seen(name, process.pid, times.user + times.system, rss))
    return found


@dataclass(slots=True)
class Meter:
    """CPU and wall seconds since it was made, over whole process trees and, with `counts_self`, this process.

    A process that ends inside the interval is counted up to the last `look`.
    """

    root_pids: tuple[int, ...]
    counts_self: bool = True
    _before: dict[int, float] = field(default_factory=dict)
    _latest: dict[int, Seen] = field(default_factory=dict)
    _own_cpu_s: float = 0.0
    _began: float = 0.0

    def __post_init__(self) -> None:
        for pid in self.root_pids:
            self._before |= {seen.pid: seen.cpu_s for seen in processes(pid)}
        self._own_cpu_s, self._began = time.process_time(), time.perf_counter()

    def look(self) -> None:
        """Take note of who runs now."""
        for pid in self.root_pids:
            self._latest |= {seen.pid: seen for seen in processes(pid)}

    def stop(self) -> Spent:
        """What was spent until now."""
        wall_s, own_cpu_s = time.perf_counter() - self._began, time.process_time() - self._own_cpu_s
        self.look()
        by_process: dict[str, float] = {"client": own_cpu_s} if self.counts_self else {}
        for seen in self._latest.values():
            spent = seen.cpu_s - self._before.get(seen.pid, 0.0)
            by_process[seen.name] = by_process.get(seen.name, 0.0) + spent
        return Spent(wall_s, sum(by_process.values()), {name: round(s, 3) for name, s in by_process.items() if s > 0})


@dataclass(frozen=True, slots=True)
class Spent:
    """Wall seconds, CPU seconds of all processes together, and of each by name."""

    wall_s: float
    cpu_s: float
    by_process: dict[str, float]


def _short_name(process: psutil.Process) -> str:
    line: list[str] = process.cmdline()
    if "-m" in line and line.index("-m") + 1 < len(line):
        return line[line.index("-m") + 1]
    # Servers write their address or state behind their name.
    return Path(line[0].split(" ")[0]).name.rstrip(":") if line else str(process.name())


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
