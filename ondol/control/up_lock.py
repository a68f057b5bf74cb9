"""One `ondol up` a data folder: a lock that lives as long as anything it started."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ondol.contract.errors import Conflict


class DataFolderInUse(Conflict):
    """Another `ondol up` works on this data folder."""

    code = "data_folder_in_use"


@contextmanager
def locked_data_folder(run_dir: Path) -> Iterator[int]:
    """Hold the folder's lock; yields its file descriptor, for children that must hold it too. DataFolderInUse at once.

    A child that inherits the descriptor keeps the folder locked even if this process is killed.
    """
    for folder in (run_dir.parent, run_dir):  # people's texts and passwords: nobody else's business
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(run_dir / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(fd, run_dir)
        yield fd
    finally:
        os.close(fd)


def _lock(fd: int, run_dir: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).decode("ascii").strip() or "unknown"
        message = (
            f"`ondol up` already works on {run_dir.parent} (process {pid}); stop it, or choose another ONDOL_DATA_DIR"
        )
        raise DataFolderInUse(message) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode("ascii"), 0)
