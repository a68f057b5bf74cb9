"""A real device process on the first GPU as a child of the test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ondol.contract.frames import receive_frame
from tests.device_child import ANSWER_LIMIT_S, REPOSITORY, DeviceChild, child_environment


@contextmanager
def cuda_child(environment: Mapping[str, str] | None = None, *, memory_mb: int = 4_096) -> Iterator[DeviceChild]:
    """`python -m workers.device --device cuda:0`; `environment` on top of this process's own. Ended at the end."""
    ours, theirs = socket.socketpair()
    ours.settimeout(ANSWER_LIMIT_S)
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    options = {"--fd": theirs.fileno(), "--device": "cuda:0", "--cores": cores, "--threads": 1}
    options |= {"--memory-mb": memory_mb, "--batch-tokens": 16_384}
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.device", *(str(part) for pair in options.items() for part in pair)],
        pass_fds=[theirs.fileno()],
        cwd=REPOSITORY,
        env=child_environment() | dict(environment or {}),
    )
    theirs.close()
    try:
        frame = receive_frame(ours)
        assert frame is not None, "the device process ended before it was ready"
        yield DeviceChild(process, ours, frame[0])
    finally:
        ours.close()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
