"""The tie to the worker: the device process never outlives it, and has a process group of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def bind_to_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends; ends at once if `parent_pid` is gone already.

    The kernel watches the *thread* that started this process: the worker must start it from one that lives as long
    as the worker.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        # The parent died before the signal was armed; nobody is left to read an answer.
        sys.exit(0)


def lead_process_group() -> None:
    """Be leader of a process group, so that the worker can end this process with whatever it started."""
    if os.getpgid(0) != os.getpid():
        os.setpgid(0, 0)
