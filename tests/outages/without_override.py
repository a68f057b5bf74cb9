"""Starts a program for whom a folder without write permission is read-only, root or not.

`python -m tests.outages.without_override -m api.main` runs `python -m api.main`. Root writes where permissions
forbid it by a capability of its own; it is dropped here, for the program and all that it starts.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_CAPBSET_DROP = 24
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


def main(argv: list[str]) -> None:
    """Become the program; OSError where the kernel does not let us drop."""
    if os.geteuid() == 0:
        for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            if ctypes.CDLL(None, use_errno=True).prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
                number = ctypes.get_errno()
                raise OSError(number, f"capability {capability} cannot be dropped: {os.strerror(number)}")
    os.execv(sys.executable, [sys.executable, *argv])


if __name__ == "__main__":
    main(sys.argv[1:])
