"""The worker's side of an import: starts the child, waits, and turns its answer into a spec or an error.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from ondol.contract.errors import AttemptError, AttemptTimedOut, ModelRefused, ModelStoreError
from ondol.contract.model_spec import ModelSpec, parse_model_spec
from workers.child_environment import child_environment

_STDERR_SHOWN_CHARS = 2_000


def run_import(
    source: Path, target: Path, *, convert_bin: bool, timeout_s: float, memory_mb: int = 65_536
) -> ModelSpec:
    """Import `source` into the new folder `target` in a child process; blocks. On any error `target` is removed.

    ModelRefused: the folder cannot be imported, and the message says why. AttemptTimedOut: the child was ended after
    `timeout_s`. AttemptError (`import_child_died`): the child ended by itself, as from lack of memory.
    `memory_mb` bounds the child's address space.
    """
    if target.exists() and any(target.iterdir()):
        raise ModelStoreError(f"{target} is not empty")
    try:
        answer = _run_child(source, target, convert_bin=convert_bin, timeout_s=timeout_s, memory_mb=memory_mb)
        if answer["ok"]:
            return parse_model_spec(json.dumps(answer["spec"]).encode(), ref=source.name)
        error = answer["error"]
        raise ModelRefused(error["message"], param=error["param"], code=error["code"])
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _run_child(source: Path, target: Path, *, convert_bin: bool, timeout_s: float, memory_mb: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "workers.importing", "--source", str(source), "--target", str(target)]
    command += ["--memory-mb", str(memory_mb), "--parent-pid", str(os.getpid())]
    if convert_bin:
        command.append("--convert-bin")
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        start_new_session=True,
    ) as child:
        try:
            stdout, stderr = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise AttemptTimedOut(f"the import took longer than {timeout_s:g} s") from exc
        finally:
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)
    return _parse_answer(child.returncode, stdout, stderr)


def _environment() -> dict[str, str]:
    """Only what a child that reads untrusted files needs: no passwords, no network, no device."""
    return child_environment("OMP_NUM_THREADS") | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
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
        raise AttemptError(f"the import child ended with {how}: {tail}", code="import_child_died")
    return answer
