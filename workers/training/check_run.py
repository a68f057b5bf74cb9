"""The trainer node's side of a check: starts the child, waits, and turns its answer into a report or an error.

Imports neither torch nor transformers, and none of the libraries that read the files.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ondol.contract.errors import AttemptError, AttemptTimedOut, InvalidPayload, ModelStoreError
from workers.training.plan import TrainReport, parse_report

DEFAULT_MEMORY_MB = 16_384

_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
_STDERR_SHOWN_CHARS = 2_000
_POLL_S = 0.1


def run_check(
    plan_path: Path,
    *,
    timeout_s: float,
    memory_mb: int = DEFAULT_MEMORY_MB,
    must_end: Callable[[], bool] = lambda: False,
) -> TrainReport | None:
    """Check the data of the plan at `plan_path` in a child process; blocks. Call from a thread that lives on.

    `must_end` is asked ten times a second; when it says so, the child is ended and None returned (the only None).
    InvalidPayload: the data or options are at fault, and the message says how. ModelStoreError: the base is not
    readable. AttemptTimedOut: the child was ended
    after `timeout_s`. AttemptError (`check_child_died`): it ended by itself, as from lack of memory. `memory_mb`
    bounds the child's address space.
    """
    answer = _run_child(plan_path, timeout_s=timeout_s, memory_mb=memory_mb, must_end=must_end)
    if answer is None:
        return None
    if answer["ok"]:
        return parse_report(answer["report"])
    error = answer["error"]
    if error["code"] == ModelStoreError.code:
        raise ModelStoreError(error["message"])
    raise InvalidPayload(error["message"], param=error["param"], code=error["code"])


def _run_child(
    plan_path: Path, *, timeout_s: float, memory_mb: int, must_end: Callable[[], bool]
) -> dict[str, Any] | None:
    command = [sys.executable, "-P", "-m", "workers.training.check", "--plan", str(plan_path)]
    command += ["--memory-mb", str(memory_mb), "--parent-pid", str(os.getpid())]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        start_new_session=True,
    ) as child:
        try:
            output = _wait(child, timeout_s, must_end)
        finally:
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)
    return None if output is None else _parse_answer(child.returncode, *output)


def _wait(child: subprocess.Popen[bytes], timeout_s: float, must_end: Callable[[], bool]) -> tuple[bytes, bytes] | None:
    """Standard output and error of the child when it has ended; None if it must end before."""
    ends_at = time.monotonic() + timeout_s
    while not must_end():
        left_s = ends_at - time.monotonic()
        if left_s <= 0:
            raise AttemptTimedOut(f"the check of the data took longer than {timeout_s:g} s")
        try:
            return child.communicate(timeout=min(_POLL_S, left_s))
        except subprocess.TimeoutExpired:
            continue
    return None


def _environment() -> dict[str, str]:
    """Only what a child that reads untrusted files needs: no passwords, no network, no device."""
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    return kept | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }


def _parse_answer(status: int, stdout: bytes, stderr: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(stdout) if status == 0 else None
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or "ok" not in answer:
        how = f"signal {-status}" if status < 0 else f"status {status}"
        tail = stderr.decode(errors="replace")[-_STDERR_SHOWN_CHARS:].strip()
        message = f"the check of the data ended with {how}; if it lacked memory, use fewer or shorter rows: {tail}"
        raise AttemptError(message, code="check_child_died")
    return answer
