"""A device program as a child of the test, spoken to over its socket as a worker would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ondol.contract.frames import Header, receive_frame, send_frame
from workers.device.engine import FloatArray, ModelHandle

REPOSITORY = Path(__file__).parent.parent
REAL_PROGRAM = (sys.executable, "-m", "workers.device")
HASH_PROGRAM = (sys.executable, "-m", "tests.device_programs")
ANSWER_LIMIT_S = 120.0
STOP_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class DeviceChild:
    """The process, our end of its socket, and what it said when it was ready."""

    process: subprocess.Popen[bytes]
    sock: socket.socket
    ready: Header

    def ask(self, header: Header, body: bytes = b"") -> tuple[Header, memoryview]:
        """Send one request and wait for the next answer."""
        send_frame(self.sock, header, (body,))
        return self.receive()

    def receive(self) -> tuple[Header, memoryview]:
        """The next answer; EOFError when the process closed instead."""
        frame = receive_frame(self.sock)
        if frame is None:
            raise EOFError("the device process closed its socket")
        return frame


@contextmanager
def device_child(
    program: Sequence[str] = REAL_PROGRAM, *, cores: Sequence[int] | None = None, **changes: object
) -> Iterator[DeviceChild]:
    """A running device program with one thread, its options changed as in `device_options`; ended by closing its
    socket, or by SIGKILL if that does not help.
    """
    ours, theirs = socket.socketpair()
    ours.settimeout(ANSWER_LIMIT_S)
    process = subprocess.Popen(
        [*program, *device_options(theirs.fileno(), cores, **changes)],
        pass_fds=[theirs.fileno()],
        cwd=REPOSITORY,
        env=child_environment(),
    )
    theirs.close()
    try:
        frame = receive_frame(ours)
        assert frame is not None, "the device process ended before it was ready"
        yield DeviceChild(process, ours, frame[0])
    finally:
        ours.close()
        try:
            process.wait(timeout=STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def device_options(fd: int, cores: Sequence[int] | None = None, **changes: object) -> list[str]:
    """The standard arguments for a CPU device with one thread; `changes` as `memory_mb=512`, None: left out."""
    chosen = sorted(os.sched_getaffinity(0))[:1] if cores is None else cores
    core_list = ",".join(str(core) for core in chosen)
    options: dict[str, object] = {"fd": fd, "device": "cpu:0", "cores": core_list, "threads": 1}
    options |= {"memory_mb": 1024, "batch_tokens": 1024} | changes
    named = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value is not None}
    return [str(part) for pair in named.items() for part in pair]


def child_environment() -> dict[str, str]:
    """This process's environment, with the repository importable from any folder."""
    return os.environ | {"PYTHONPATH": str(REPOSITORY)}


def model_header(handle: ModelHandle) -> Header:
    """The model as a frame names it."""
    return {"key": handle.key, "ref": handle.ref, "path": str(handle.path), "dtype": handle.dtype}


def run_frame(request_id: int, model: Header, rows: Sequence[Sequence[int]], **spec: object) -> tuple[Header, bytes]:
    """A `run` request for rows of token ids."""
    header: Header = {
        "op": "run",
        "id": request_id,
        "model": model,
        "spec": {"task": "embedding", "pooling": None, "layer": -1, **spec},
        "lengths": [len(row) for row in rows],
        "skip": None,
        "has_type_ids": False,
    }
    return header, np.asarray([token for row in rows for token in row], dtype="<i4").tobytes()


def vectors_of(header: Header, body: memoryview) -> FloatArray:
    """The vectors of a `ran` answer."""
    return np.frombuffer(body, dtype="<f4").reshape(header["shape"])
