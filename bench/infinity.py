"""Infinity's HTTP server as a peer, in a virtual environment of its own below ours, made if it is missing.

The environment gets the very torch version that is installed here, before anything else, so that nothing in it brings
another one. Its server runs offline on the packaged model folder.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from bench.machine import pinned
from bench.stacks import MODEL, MODELS_FOLDER
from ondol.control.host import free_port
from ondol.control.launch import launch_command
from tests.waiting import answers_well, wait_until

FOLDER = Path(sys.prefix) / "infinity"
REQUIREMENTS = ("infinity-emb[torch,server]==0.0.78", "click<8.2", "typer<0.13")
"""With click 8.2 or typer 0.13 its command line of that version does not start."""
START_LIMIT_S = 120
STOP_LIMIT_S = 20
BATCH_SIZE = 32


class Unavailable(Exception):
    """The peer cannot be had here; the message says why in a line."""


def ensure_environment() -> Path:
    """The `infinity_emb` command, installed first if need be (a minute). Unavailable if that fails."""
    command = FOLDER / "bin" / "infinity_emb"
    marker = FOLDER / ".installed"
    if marker.exists():
        return command
    print(f"installing {REQUIREMENTS[0]} into {FOLDER}", flush=True)
    torch = f"torch=={version('torch').split('+')[0]}"
    pip = [str(FOLDER / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    for step in ([sys.executable, "-m", "venv", str(FOLDER)], [*pip, torch], [*pip, *REQUIREMENTS, torch]):
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise Unavailable(f"infinity could not be installed: {last[:200]}")
    marker.touch()
    return command


@contextlib.contextmanager
def serving(dtype: str, on: tuple[int, ...], log: Path) -> Iterator[tuple[int, int]]:
    """(process id, port) of a server on these cores with one thread a core; Unavailable if it does not start."""
    port, command = free_port(), ensure_environment()
    arguments = ["v2", "--model-id", str(MODELS_FOLDER / MODEL), "--served-model-name", MODEL, "--engine", "torch"]
    arguments += ["--device", "cpu", "--dtype", dtype, "--batch-size", str(BATCH_SIZE), "--no-bettertransformer"]
    arguments += ["--port", str(port), "--host", "127.0.0.1", "--url-prefix", "/v1", "--log-level", "warning"]
    threads = {name: str(len(on)) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    quiet = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with log.open("ab") as output, pinned(on):
        child = subprocess.Popen(
            launch_command([str(command), *arguments], parent=str(os.getpid())),
            stdout=output,
            stderr=output,
            env={**kept, **threads, **quiet},
            start_new_session=True,
        )
    try:
        wait_until(lambda: _is_ready(child, port, log), within_s=START_LIMIT_S, what="infinity to answer")
        yield child.pid, port
    finally:
        _stop(child)


def _is_ready(child: subprocess.Popen[bytes], port: int, log: Path) -> bool:
    if child.poll() is not None:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise Unavailable(f"infinity ended with code {child.returncode}: {' '.join(last)[:200]}")
    return answers_well(port, "/health")


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
