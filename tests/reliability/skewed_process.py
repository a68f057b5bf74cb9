"""A process of the product on a host whose clock is wrong: `… -m tests.reliability.skewed_process SECONDS MODULE …`.

Only what the process itself reads is wrong; the database keeps its own clock, as it does on another host.
"""

from __future__ import annotations

import runpy
import sys
import time


def main(seconds: float, module: str) -> None:
    """Set this process's clock ahead by so many seconds, then run the module as the program."""
    real = time.time
    time.time = lambda: real() + seconds
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    ahead_s, program = float(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[2:]
    main(ahead_s, program)
