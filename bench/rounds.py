"""A measured program as a child process that takes turns: it loads once, then runs one round for each line it is sent.

The child prints one JSON line when it is ready and one after each round (`serve_rounds`); the parent asks (`Peer`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from bench.machine import cores, pinned
from ondol.control.launch import launch_command

STOP_LIMIT_S = 20.0
Figures = dict[str, Any]


class PeerFailed(Exception):
    """The child ended; the message says with which code."""


class Peer:
    """A child started as `python -m MODULE …` that serves rounds; for a `with` statement. Ends with this process."""

    def __init__(
        self,
        module: list[str],
        *,
        on: tuple[int, ...] | None = None,
        environment: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        command = [python, "-m", *module]
        with pinned(on or cores()):
            self._child = subprocess.Popen(
                launch_command(command, parent=str(os.getpid())),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self._name = " ".join(module[:1])

    def __enter__(self) -> Self:
        try:
            self._read()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    def run(self, **request: Any) -> Figures:
        """What one round answers; blocks. PeerFailed if the child has ended."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError as exc:
            raise PeerFailed(f"{self._name} has ended") from exc
        return self._read()

    def close(self) -> None:
        """Let the child end; it is ended by force if it does not."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        try:
            self._child.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()

    def _read(self) -> Figures:
        assert self._child.stdout is not None
        for text in self._child.stdout:
            if text.startswith("{"):  # libraries print too
                figures: Figures = json.loads(text)
                return figures
        raise PeerFailed(f"{self._name} ended with code {self._child.wait()}; its own words are above")


def serve_rounds(run: Callable[[Figures], Figures]) -> None:
    """Say that this process is ready, then answer each request line with what `run` says, until there are no more."""
    print(json.dumps({"ready": True}), flush=True)
    for text in sys.stdin:
        print(json.dumps(run(json.loads(text))), flush=True)
