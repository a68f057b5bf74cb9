"""A program on a real terminal of 80 columns and 24 lines, as a person has it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping, Sequence

COLUMNS, LINES = 80, 24
_STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class OnTerminal:
    """A program whose three streams are one terminal; `wait` for its end, then look at what it wrote."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._seen: list[bytes] = []
        given = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self._process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env={**given, "TERM": "xterm"}
        )
        os.close(theirs)
        self._reading = threading.Thread(target=self._read_all)
        self._reading.start()

    @property
    def written(self) -> str:
        """All that was written so far, control characters included."""
        return b"".join(self._seen).decode("utf-8", "replace")

    @property
    def lines(self) -> list[str]:
        """What was drawn, line by line: a bar that was drawn anew has one line a time."""
        return [line for line in re.split(r"\r\n|\r|\n", _STYLES.sub("", self.written)) if line.strip()]

    def wait(self, timeout_s: float) -> int:
        """The exit code; kills what has not ended."""
        try:
            return self._process.wait(timeout=timeout_s)
        finally:
            self._process.kill()
            self._process.wait()
            self._reading.join(timeout=10)
            os.close(self._ours)

    def _read_all(self) -> None:
        while True:
            try:
                self._seen.append(os.read(self._ours, 65_536))
            except OSError:  # the program has ended
                return
