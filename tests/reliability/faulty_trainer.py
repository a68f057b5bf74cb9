"""A trainer node with the tests' training child, that dies or stands still at exact moments.

`python -m tests.reliability.faulty_trainer CONTROL [--small FOLDER …]`. Files in the folder CONTROL say what goes
wrong, once: `die-in-checkpoint` holds the step whose files are stored and whose manifest is not; `die-before-record`
and `freeze-before-record`: the files of the version are stored, and nothing is in SQL. Each FOLDER becomes a disk of
this process alone, small, with what the folder held.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from models_store.checkpoints import MANIFEST_FILE, CheckpointStore
from ondol.sql.unit_of_work import UnitOfWork
from workers.training import child_process
from workers.training import main as node
from workers.training.publishing import Publisher

DISK_SIZE = "2m"
_INSIDE = "--inside"


class FaultyStore(CheckpointStore):
    """Dies when it should write one manifest."""

    control: Path

    def _write(self, path: str, data: bytes) -> None:
        fault = self.control / "die-in-checkpoint"
        if fault.exists() and f"/{fault.read_text()}-" in path and path.endswith(MANIFEST_FILE):
            fault.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        super()._write(path, data)


class FaultyPublisher(Publisher):
    """Dies or stands still when it should record a version whose files are stored."""

    control: Path

    def record(self, *args: Any, **kwargs: Any) -> Any:
        for name, number in (("die-before-record", signal.SIGKILL), ("freeze-before-record", signal.SIGSTOP)):
            if (self.control / name).exists():
                (self.control / name).unlink()
                # Behind a commit: frozen inside a transaction of another thread, it would hold SQLite's lock.
                self._database.write(partial(UnitOfWork.after_commit, hook=partial(os.kill, os.getpid(), number)))
        return super().record(*args, **kwargs)


def main(argv: list[str]) -> int:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(prog="tests.reliability.faulty_trainer")
    parser.add_argument("control", type=Path)
    parser.add_argument("--small", type=Path, nargs="*", default=[])
    parser.add_argument(_INSIDE, action="store_true")
    given = parser.parse_args(argv)
    if given.small and not given.inside:
        _become_one_with_small_disks(given.small, argv)
    FaultyStore.control = FaultyPublisher.control = given.control
    node.CheckpointStore = FaultyStore  # type: ignore[attr-defined]  # the module's own name for it
    node.Publisher = FaultyPublisher  # type: ignore[attr-defined]  # the module's own name for it
    real = child_process.training_command
    name = "workers.training.child"

    def command(plan: Path, events_fd: int) -> tuple[str, ...]:
        argv = [each if each != name else "tests.reliability.training_child" for each in real(plan, events_fd)]
        return (*argv, "--control", str(given.control))

    child_process.training_command = command
    return node.main()


def _become_one_with_small_disks(folders: list[Path], argv: list[str]) -> None:
    """Start this program again where each folder is a small disk; nobody else sees those."""
    lines = []
    for folder in folders:
        here, aside = shlex.quote(str(folder)), shlex.quote(f"{folder}.aside")
        lines.append(
            f"mkdir -p {here} && cp -a {here} {aside} && mount -t tmpfs -o size={DISK_SIZE} tmpfs {here} && "
            f"cp -a {aside}/. {here} && rm -r {aside}"
        )
    again = shlex.join([sys.executable, "-m", "tests.reliability.faulty_trainer", *argv, _INSIDE])
    script = " && ".join([*lines, f"exec {again}"])
    os.execvp("unshare", ["unshare", "--map-root-user", "--mount", "sh", "-c", script])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
