"""Seconds of chaos over real processes: everything dies at random, every promise is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import Options, run_chaos
from tests.chaos.world import Size

pytestmark = [pytest.mark.chaos, pytest.mark.integration, pytest.mark.timeout(240)]

SECONDS = 8.0
KINDS = ("kill_worker", "kill_device", "zombie", "flush_redis", "kick_redis_clients", "reset_redis_link", "kill_redis")
"""What the system recovers from within a second or two; the rest is for the long run."""


def test_promises_are_kept_while_everything_dies(tmp_path: Path, tiny_version: Path) -> None:
    options = Options(seed=7, seconds=SECONDS, size=Size(has_trainer=False, num_reconcilers=1), kinds=KINDS)
    outcome = run_chaos(options, tmp_path / "run", model=tiny_version)
    assert outcome.violations == []
    assert outcome.report["num_faults"] >= 4
    assert outcome.report["accepted"] >= 10
