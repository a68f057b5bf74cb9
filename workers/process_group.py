"""The end of a child that leads a process group: with whatever it has started."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

import structlog

log = structlog.get_logger(__name__)

_GONE_LIMIT_S = 30.0
_LOOK_S = 0.02


def end_group(leader: subprocess.Popen[bytes]) -> int:
    """SIGKILL the whole group and wait until it is gone; the leader's exit code. Also after a regular exit."""
    kill_group(leader.pid)
    code = leader.wait()
    limit = time.monotonic() + _GONE_LIMIT_S
    while _exists(leader.pid) and time.monotonic() < limit:
        threading.Event().wait(_LOOK_S)
    return code


def kill_group(pgid: int) -> None:
    """SIGKILL all of the group; one that is gone is no error. Returns at once."""
    try:
        os.killpg(pgid, signal.SIGKILL)
    except ProcessLookupError:
        return
    except PermissionError:
        log.exception("process_group.not_ours", pgid=pgid)


def _exists(pgid: int) -> bool:
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return False
    return True
