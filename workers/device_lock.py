"""One holder a device: a lock file that is free only when its holder, and whoever inherited it, is gone."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ondol.contract.errors import NotReady


def hold_device(run_dir: Path, name: str, device: str) -> int:
    """Hold `device` for the worker or trainer `name`; the descriptor of the lock. NotReady if another holds it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    fd = os.open(run_dir / f"device-{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(fd)
        raise NotReady(f"another process of this data folder holds {device} as {name}; one holder a device") from exc
    return fd
