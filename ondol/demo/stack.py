"""An embedded stack as a child process: `ondol up` on a folder and a free port, stopped with SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from ondol.control.launch import launch_command
from ondol.demo.errors import DemoFailed

_READY_LIMIT_S = 180.0
_STOP_LIMIT_S = 20.0
_LOOK_EVERY_S = 0.1
_READY_LINE = re.compile(r"^Ondol is ready: (\S+)", re.MULTILINE)
_LOG_TAIL_LINES = 15


class Stack:
    """`ondol up` on `data_dir`; `url` is its address inside a `with` statement.

    It ends with this process, however that ends. `settings` are environment variables (`ONDOL_…`) for it; those of
    this process do not reach it.
    """

    def __init__(self, data_dir: Path, settings: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self.log = data_dir / "up.log"
        self.url = ""
        self._settings = dict(settings or {})
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of `ondol up`."""
        assert self._child is not None
        return self._child.pid

    def start(self) -> None:
        """Start it and wait until it is ready; DemoFailed with the end of its log if it is not in time."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "ondol.cli.main", "up", "--data-dir", str(self.data_dir), "--port", "0"]
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                launch_command(command, parent=str(os.getpid())),
                env=self._environment(),
                cwd=self.data_dir,  # its .env, if any, is the data folder's, not that of whoever starts the demo
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the child in order
            )
        try:
            self.url = self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> int:
        """Stop it with SIGTERM; its exit code. DemoFailed if it had to be ended by SIGKILL."""
        child = self._child
        if child is None:
            return 0
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
        try:
            return child.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise DemoFailed(
                f"`ondol up` did not stop within {_STOP_LIMIT_S:.0f} s of SIGTERM; {self._tail()}"
            ) from None

    def _wait_until_ready(self) -> str:
        assert self._child is not None
        give_up_at = time.monotonic() + _READY_LIMIT_S
        while time.monotonic() < give_up_at:
            try:
                code = self._child.wait(_LOOK_EVERY_S)
            except subprocess.TimeoutExpired:
                url = self._ready_url()
                if url:
                    return url
            else:
                raise DemoFailed(f"`ondol up` ended with code {code}; {self._tail()}")
        raise DemoFailed(f"`ondol up` was not ready within {_READY_LIMIT_S:.0f} s; {self._tail()}")

    def _ready_url(self) -> str | None:
        match = _READY_LINE.search(self.log.read_text(encoding="utf-8", errors="replace"))
        return match[1] if match else None

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ONDOL_")}
        return kept | self._settings

    def _tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "its last lines: " + " | ".join(lines[-_LOG_TAIL_LINES:])
