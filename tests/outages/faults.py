"""Outages that a test or benchmark begins and ends: a database that is away or locked, a store that takes nothing."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.servers import PostgresServer, RedisServer

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHER = ("-m", "tests.outages.without_override")
"""For `Cluster.launcher`: programs started by it are refused by a folder that is read-only."""
_FOLDER_MODES = (0o555, 0o755)
_TRY_TO_WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1], 'tried').write_bytes(b'')"


@contextlib.contextmanager
def postgres_stopped(server: PostgresServer) -> Iterator[None]:
    """The server process is gone during the block; its files stay."""
    server.halt()
    try:
        yield
    finally:
        server.start_again()


@contextlib.contextmanager
def sqlite_locked(file: Path) -> Iterator[None]:
    """A writer holds the database during the block, as a frozen process or a long transaction would."""
    with contextlib.closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            writer.execute("ROLLBACK")


@contextlib.contextmanager
def redis_stopped(server: RedisServer) -> Iterator[None]:
    """Redis is ended by SIGKILL, and comes back with its append-only file at the end of the block."""
    server.kill()
    try:
        yield
    finally:
        server.start()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be written in the folder or below it during the block, by programs started with `LAUNCHER`."""
    _set_modes(folder, _FOLDER_MODES[0])
    try:
        yield
    finally:
        _set_modes(folder, _FOLDER_MODES[1])


def why_not_read_only(folder: Path) -> str | None:
    """Why folders cannot be made read-only here; None where it works. Tries it in `folder`."""
    with read_only(folder):
        command = [sys.executable, *LAUNCHER, "-c", _TRY_TO_WRITE, str(folder)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if "PermissionError" in done.stderr and not (folder / "tried").exists():
        return None
    return f"permissions do not bind here: {done.stderr.strip().splitlines()[-1:] or 'the write went through'}"


def _set_modes(folder: Path, mode: int) -> None:
    for path in [folder, *(each for each in folder.rglob("*") if each.is_dir())]:
        path.chmod(mode)
