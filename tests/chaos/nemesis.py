"""Carries a plan out: breaks one thing after the other, several at once, and mends each when its time is over."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import resource
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import redis
import sqlalchemy as sa

from tests.chaos import skew
from tests.chaos.plan import Fault
from tests.chaos.world import LEASE_S, MODEL, World
from tests.chaos.zombie import Zombie

_TICK_S = 0.05
_BESIDE_LIMIT_S = 60.0
_HOLDS = "session.opened"
"""What a worker logs when it has its device."""
_FULL_BYTES = 4096
"""Under a full disk no file grows over this: a manifest still fits, weights do not."""
SKEW_S = 600

Undo = Callable[[], None] | None


class Nemesis:
    """One run of a plan over a world, from one thread."""

    def __init__(self, world: World, plan: Sequence[Fault]) -> None:
        self._world = world
        self._plan = list(plan)
        self._undo: list[tuple[float, int, Fault, Callable[[], None]]] = []
        self._order = itertools.count()
        self._busy: set[str] = set()
        self._skew_library = skew.make_library(world.folder) if world.size.is_postgresql else None
        self.zombies: list[Zombie] = []
        self._besides: list[threading.Thread] = []

    def run(self, stop: threading.Event) -> None:
        """Carry out the plan; then mend everything that is still broken."""
        began_at = time.monotonic()
        for fault in self._plan:
            while time.monotonic() - began_at < fault.at_s and not stop.is_set():
                self._tick()
            if stop.is_set():
                break
            self._begin(fault)
        while self._undo and not stop.is_set():
            self._tick()
        self.mend()

    def mend(self) -> None:
        """End all faults now."""
        while self._undo:
            self._end_next()
        self._world.heal()

    def wait(self, world_is_whole: Callable[[], bool], *, within_s: float) -> bool:
        """Supervise until the predicate is true; False when it is not in time."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            if world_is_whole():
                return True
            self._tick()
        return world_is_whole()

    def join(self) -> None:
        """Wait for the threads that it has started."""
        for thread in (*self.zombies, *self._besides):
            thread.join(timeout=120)

    def _tick(self) -> None:
        while self._undo and self._undo[0][0] <= time.monotonic():
            self._end_next()
        self._world.supervise()
        time.sleep(_TICK_S)

    def _begin(self, fault: Fault) -> None:
        if fault.target in self._busy:
            self._world.history.fault(fault.kind, phase="skipped", number=fault.number, target=fault.target)
            return
        hold_s = round(fault.hold_s, 2)
        self._world.history.fault(
            fault.kind, phase="begin", number=fault.number, target=fault.target, hold_s=hold_s, sign=fault.sign
        )
        undo = getattr(self, f"_{fault.kind}")(fault)
        if undo is not None:
            self._busy.add(fault.target)
            heapq.heappush(self._undo, (time.monotonic() + fault.hold_s, next(self._order), fault, undo))

    def _end_next(self) -> None:
        _, _, fault, undo = heapq.heappop(self._undo)
        undo()
        self._busy.discard(fault.target)
        self._world.history.fault(fault.kind, phase="end", number=fault.number, target=fault.target)

    def _kill(self, fault: Fault) -> Undo:
        """SIGKILL; the supervisor starts it again when the time is over."""
        world, name = self._world, fault.target
        world.down.add(name)
        if world.cluster.processes[name].poll() is None:
            world.cluster.kill(name)
        return lambda: world.down.discard(name)

    _kill_worker = _kill_trainer = _kill_api = _kill_reconciler = _kill

    def _freeze(self, fault: Fault) -> Undo:
        """SIGSTOP of the process alone: its device process or training child goes on."""
        world, name = self._world, fault.target
        process = world.cluster.processes[name]
        if not world.send(name, signal.SIGSTOP):
            return None

        def wake() -> None:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)

        return wake

    _freeze_worker = _freeze_worker_past_lease = _freeze_trainer = _freeze_api = _freeze_reconciler = _freeze

    def _kill_device(self, fault: Fault) -> Undo:
        for child in self._world.children(fault.target, "--batch-tokens"):
            with contextlib.suppress(psutil.Error):
                child.kill()
        return None

    def _freeze_device(self, fault: Fault) -> Undo:
        frozen = self._world.children(fault.target, "--batch-tokens")
        for child in frozen:
            with contextlib.suppress(psutil.Error):
                child.suspend()

        def wake() -> None:
            for child in frozen:
                with contextlib.suppress(psutil.Error):
                    child.resume()

        return wake

    def _kill_training_child(self, fault: Fault) -> Undo:
        for child in self._world.children(fault.target, "workers.training.child"):
            with contextlib.suppress(psutil.Error):
                child.kill()
        return None

    def _second_holder(self, fault: Fault) -> Undo:
        """Start a second process for the same device; while the first one lives it must give up.

        Where the first has no device process yet, it may be starting itself, and then either may come first.
        """
        world, name = self._world, fault.target
        first, is_held = world.cluster.processes[name], bool(world.children(fault.target, "--batch-tokens"))

        def watch() -> None:
            code, said = world.cluster.run_beside(name, until=_HOLDS, within_s=_BESIDE_LIMIT_S)
            if is_held and world.cluster.processes[name] is first and first.poll() is None:
                refused = _HOLDS not in said  # one that had no time to come so far has held nothing
                world.history.note("second_holder", worker=name, refused=refused, exit_code=code)

        if first.poll() is None:
            self._besides.append(threading.Thread(target=watch, name="second-holder", daemon=True))
            self._besides[-1].start()
        return None

    def _zombie(self, fault: Fault) -> Undo:
        world = self._world
        zombie = Zombie(fault.number, world.cluster.database_url, f"{MODEL}:1", LEASE_S, world.history)
        self.zombies.append(zombie)
        zombie.start()
        return None

    def _flush_redis(self, _: Fault) -> Undo:
        with contextlib.suppress(redis.RedisError):
            self._world.redis.flush()
        return None

    def _kill_redis(self, _: Fault) -> Undo:
        self._world.redis.kill()
        return self._world.redis.start

    def _pause_redis(self, fault: Fault) -> Undo:
        with self._world.redis.client() as client:
            client.client_pause(int(fault.hold_s * 1000))
        return lambda: None

    def _kick_redis_clients(self, _: Fault) -> Undo:
        with self._world.redis.client() as client:
            client.client_kill_filter(_type="normal")
        return None

    def _reset_redis_link(self, _: Fault) -> Undo:
        self._world.redis_link.reset()
        return None

    def _stall_redis_link(self, _: Fault) -> Undo:
        self._world.redis_link.stall()
        return self._world.redis_link.resume

    def _lock_database(self, _: Fault) -> Undo:
        """A writer that holds SQLite's lock."""
        path = sa.make_url(self._world.cluster.database_url).database
        assert path is not None
        holder = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
        try:
            holder.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:  # somebody frozen holds it
            holder.close()
            return None

        def let_go() -> None:
            holder.rollback()
            holder.close()

        return let_go

    def _reset_database_link(self, _: Fault) -> Undo:
        assert self._world.database_link is not None
        self._world.database_link.reset()
        return None

    def _stall_database_link(self, _: Fault) -> Undo:
        assert self._world.database_link is not None
        self._world.database_link.stall()
        return self._world.database_link.resume

    def _lose_commit(self, _: Fault) -> Undo:
        assert self._world.database_link is not None
        self._world.database_link.tear()
        return None

    def _stop_database(self, _: Fault) -> Undo:
        self._world.stop_postgres(signal.SIGINT)
        return self._world.start_postgres

    def _crash_database(self, _: Fault) -> Undo:
        self._world.stop_postgres(signal.SIGQUIT)
        return self._world.start_postgres

    def _skew_clock(self, fault: Fault) -> Undo:
        """The worker lives for a while with a clock that is ten minutes ahead or behind."""
        world, name = self._world, fault.target
        if self._skew_library is None:
            return None
        world.cluster.kill(name)
        world.cluster.restart(name, **skew.environment(self._skew_library, fault.sign * SKEW_S))

        def end() -> None:
            if world.cluster.processes[name].poll() is None:
                world.cluster.kill(name)

        return end

    def _read_only_store(self, _: Fault) -> Undo:
        """No file of the store can be made or changed; all can be read."""
        root = self._world.folder / "data" / "store"
        if not root.is_dir():
            return None
        return _immutable(root) or _not_writable(root)

    def _fill_disk(self, fault: Fault) -> Undo:
        """No file that the process writes may grow any more (EFBIG, as a quota has it); children alike."""
        process = self._world.cluster.processes[fault.target]

        def limit(num_bytes: int) -> None:
            with contextlib.suppress(psutil.Error):
                parent = psutil.Process(process.pid)
                for one in (parent, *parent.children(recursive=True)):
                    with contextlib.suppress(psutil.Error, ProcessLookupError):
                        resource.prlimit(one.pid, resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))

        limit(_FULL_BYTES)
        return lambda: limit(resource.RLIM_INFINITY)


def _immutable(root: Path) -> Undo:
    """By the folders' immutable flag, which binds root too; None where the filesystem knows none."""
    command = ["chattr", "-R", "+i", str(root)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        return None
    undo = ["chattr", "-R", "-i", str(root)]
    if done.returncode != 0:
        subprocess.run(undo, capture_output=True, check=False)
        return None
    return lambda: _run(undo)


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, capture_output=True, check=True)


def _not_writable(root: Path) -> Undo:
    """By permissions, which do not bind root: there the fault is left out."""
    if os.geteuid() == 0:
        return None
    folders = [path for path in (root, *root.rglob("*")) if path.is_dir()]
    modes = {path: path.stat().st_mode for path in folders}
    for path in folders:
        path.chmod(0o555)

    def free() -> None:
        for path, mode in modes.items():
            path.chmod(mode)

    return free
