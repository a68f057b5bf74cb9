"""Runs one of our modules as a limited child that answers in one line of JSON: starts it, waits, ends it in time.

For children that read untrusted files. Imports none of the libraries that read them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ondol.contract.errors import AttemptError, AttemptTimedOut
from workers.child_environment import child_environment

_STDERR_SHOWN_CHARS = 2_000
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class LimitedChild:
    """A module that takes `--memory-mb` and `--parent-pid`, applies `limit_process`, and prints its answer.

    `what` is what it does, in the words of its errors. `code` is that of the AttemptError when it ends by itself;
    `is_tried_again`: ended by a signal, it is worth another try. `variables`: what its libraries are told besides.
    """

    module: str
    what: str
    code: str
    advice: str
    is_tried_again: bool = False
    variables: Mapping[str, str] = field(default_factory=lambda: {"OMP_NUM_THREADS": "1"})

    def run(
        self, arguments: Sequence[str], *, timeout_s: float, memory_mb: int, must_end: Callable[[], bool]
    ) -> dict[str, Any] | None:
        """The answer `{"ok": …}`; blocks. Call from a thread that lives on: the child ends with it.

        `must_end` is asked ten times a second; when it says so, the child is ended and None returned (the only None).
        AttemptTimedOut: the child was ended after `timeout_s`. AttemptError: it ended without an answer.
        """
        command = [sys.executable, "-P", "-m", self.module, *arguments]
        command += ["--memory-mb", str(memory_mb), "--parent-pid", str(os.getpid())]
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(),
            start_new_session=True,
        ) as child:
            try:
                output = self._wait(child, timeout_s, must_end)
            finally:
                if child.returncode is None:
                    os.killpg(child.pid, signal.SIGKILL)
        return None if output is None else self._parse(child.returncode, *output)

    def environment(self) -> dict[str, str]:
        """Only what a child that reads untrusted files needs: no passwords, no network, no device."""
        return child_environment("OMP_NUM_THREADS") | {
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
            **self.variables,
        }

    def _wait(
        self, child: subprocess.Popen[bytes], timeout_s: float, must_end: Callable[[], bool]
    ) -> tuple[bytes, bytes] | None:
        """Standard output and error of the child when it has ended; None if it must end before."""
        ends_at = time.monotonic() + timeout_s
        while not must_end():
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                raise AttemptTimedOut(f"{self.what} took longer than {timeout_s:g} s")
            try:
                return child.communicate(timeout=min(_POLL_S, left_s))
            except subprocess.TimeoutExpired:
                continue
        return None

    def _parse(self, status: int, stdout: bytes, stderr: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(stdout) if status == 0 else None
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or "ok" not in answer:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            tail = stderr.decode(errors="replace")[-_STDERR_SHOWN_CHARS:].strip()
            error = AttemptError(f"{self.what} ended with {how}; {self.advice}: {tail}", code=self.code)
            error.retryable = self.is_tried_again and status < 0
            raise error
        return answer
