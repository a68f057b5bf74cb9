"""Lives until its standard input or its parent ends; started with one argument it has a child of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

if __name__ == "__main__":
    if "child" in sys.argv:
        os.read(0, 1)  # the pipe from the parent: ends with it
    else:
        child = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "child"], stdin=subprocess.PIPE)
        signal.pause()
