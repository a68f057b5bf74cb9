"""Starts the store program and ends it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def start_program(*arguments: str) -> subprocess.Popen[str]:
    """`store_program` with these arguments."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.model_store.store_program", *arguments],
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def held_program(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The program, stopped at the moment that the arguments name; killed at the end of the block."""
    with start_program(*arguments) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()
