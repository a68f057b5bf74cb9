"""The trainer as its supervisor sees it: a process group that reports events, and can be asked to stop or ended.

Imports no torch. The child ends with the thread that started it (its parent-death signal), so that no training outlives
its supervisor.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import structlog

from workers.child_environment import device_environment
from workers.process_group import end_group

log = structlog.get_logger(__name__)

Event = dict[str, Any]

_KEPT_LINES = 40
_MAX_WAITING_LINES = 1_000
_MAX_LINE_BYTES = 4_096


@dataclass(slots=True)
class LogTail:
    """Lines that the child wrote to stderr: those not yet taken, and the last ones, for an error's message."""

    waiting: list[str] = field(default_factory=list)
    last: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, line: str) -> None:
        """Keep a line."""
        with self.lock:
            if len(self.waiting) < _MAX_WAITING_LINES:  # nobody takes lines while SQL keeps the supervisor waiting
                self.waiting.append(line)
            self.last = [*self.last, line][-_KEPT_LINES:]

    def take(self) -> list[str]:
        """Lines since the last call."""
        with self.lock:
            taken, self.waiting = self.waiting, []
            return taken


class ChildProcess:
    """One life of the training child. Start it, and use it, from one thread that outlives it.

    It inherits `keep_fds`, such as the lock of its device.
    """

    def __init__(self, plan: Path, *, threads: int, device: str, keep_fds: tuple[int, ...] = ()) -> None:
        self._events: queue.Queue[Event | None] = queue.Queue()
        self.log = LogTail()
        self._is_stop_asked = False
        reading, writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                training_command(plan, writing),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(writing, *keep_fds),
                env=trainer_environment(threads, device),
                process_group=0,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._readers = [
            threading.Thread(target=self._read_events, args=(reading,), name="trainer-events", daemon=True),
            threading.Thread(target=self._read_log, name="trainer-log", daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """The child's process id, which is also its group's."""
        return self._process.pid

    def cpu_s(self) -> float | None:
        """Seconds of CPU time that the child has used; None when it has ended."""
        try:
            used = psutil.Process(self.pid).cpu_times()
        except psutil.Error:
            return None
        return float(used.user + used.system)

    def next_event(self, timeout_s: float) -> Event | None:
        """The next event, or None after the time, or at once when the child's events have come to their end."""
        if self.has_said_all:
            return None
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if event is None:
            self._events.put(None)  # the end stays visible
        return event

    @property
    def has_said_all(self) -> bool:
        """Whether no further event can come: the pipe is closed, and all that came was taken."""
        with self._events.mutex:
            return len(self._events.queue) == 1 and self._events.queue[0] is None

    def ask_to_stop(self) -> None:
        """SIGTERM, once: write a checkpoint at the next step boundary, say `stopped`, exit."""
        if not self._is_stop_asked:
            self._is_stop_asked = True
            self._process.terminate()

    def end(self) -> int:
        """SIGKILL the whole group and wait until it is gone; the child's exit code. Also after a regular exit."""
        code = end_group(self._process)
        for reader in self._readers:
            reader.join(timeout=5)
        return code

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, or None after the time."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def _read_events(self, reading: int) -> None:
        with os.fdopen(reading, "r", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                event = _parse(line)
                if event is not None:
                    self._events.put(event)
        self._events.put(None)

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for raw in iter(lambda: lines.readline(_MAX_LINE_BYTES), b""):
                line = raw.decode(errors="replace").rstrip()
                if line:
                    self.log.add(line)


def training_command(plan: Path, events_fd: int) -> Sequence[str]:
    """The command line of the training child."""
    module = (sys.executable, "-P", "-m", "workers.training.child")
    return (*module, "--plan", str(plan), "--events-fd", str(events_fd), "--parent-pid", str(os.getpid()))


def trainer_environment(threads: int, device: str) -> dict[str, str]:
    """What the child needs, and nothing else: no passwords, no network.

    It sees the GPUs, in the order, that a device process of this host sees, and takes its own of them when it pins
    itself: `cuda:0` is the same GPU for training and serving.
    """
    hidden = {} if device.startswith("cuda:") else {"CUDA_VISIBLE_DEVICES": ""}
    return device_environment() | {
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        **hidden,
    }


def _parse(line: str) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        log.warning("trainer.event_unreadable", num_chars=len(line))
        return None
    return event
