"""A device has one holder at a time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.pinning.conftest import Pair

pytestmark = pytest.mark.integration


def start_second(pair: Pair, device: str) -> subprocess.CompletedProcess[str]:
    """Another worker with everything that the device's own was given."""
    return subprocess.run(
        [sys.executable, "-m", "workers.main"],
        env=pair.workers[device].environ(),
        cwd=pair.ondol.data_dir,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_second_worker_on_a_device_is_refused_in_one_line(pair: Pair) -> None:
    second = start_second(pair, "cpu:0")
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert "cpu:0" in second.stderr and "one holder" in second.stderr
