"""Interactive rows go first, and training still gets its fifth."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from tests.waiting import wait_until
from workers.training.child.pace import Pace
from workers.training.child.preparing import Turnstile
from workers.training.child.stopping import StopRequest
from workers.training.gate import Gate, GateKeeper

pytestmark = pytest.mark.unit


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "gate-cpu0"


def test_an_idle_device_lets_steps_pass_at_once(path: Path) -> None:
    with GateKeeper(path) as keeper:
        keeper.busy()
        keeper.idle()
        assert Gate(path).pass_step(10.0) < 1.0


def test_a_busy_device_keeps_a_step_waiting_for_at_most_four_times_the_last_one(path: Path) -> None:
    with GateKeeper(path) as keeper:
        keeper.busy()
        waited_s = Gate(path).pass_step(0.02)
    assert waited_s >= 0.08


def test_waiting_does_not_make_for_longer_waits(path: Path) -> None:
    num_steps, step_s = 6, 0.01
    with GateKeeper(path) as keeper:
        stop, pace = StopRequest(), Pace(rows_per_step=1, num_validation=0)
        turnstile = Turnstile(Gate(path), stop, pace)
        worked_s = 0.0
        for _ in range(num_steps):
            keeper.busy()
            turnstile.training_batch()
            started = time.monotonic()
            threading.Event().wait(step_s)
            worked_s += time.monotonic() - started
    assert pace.gate_s < 5 * worked_s, "counting the wait as work would make each wait five times the one before"


def test_the_flag_of_a_dead_worker_expires(path: Path) -> None:
    with GateKeeper(path) as keeper:
        keeper.busy()
    waited_s = Gate(path).pass_step(1000.0)
    assert 0.5 < waited_s < 100


def test_a_held_process_waits_until_it_is_released(path: Path) -> None:
    with GateKeeper(path) as keeper:
        keeper.hold(os.getpid())
        passed = threading.Event()

        def step() -> None:
            Gate(path).pass_step(0.0)
            passed.set()

        thread = threading.Thread(target=step)
        thread.start()
        assert not passed.wait(0.1)
        keeper.release()
        wait_until(passed.is_set, within_s=10, what="the held step to pass")
        thread.join()


def test_a_hold_of_another_process_is_none_of_ours(path: Path) -> None:
    with GateKeeper(path) as keeper:
        keeper.hold(os.getpid() + 1)
        assert Gate(path).pass_step(0.0) < 1.0


def test_a_stop_ends_every_wait(path: Path) -> None:
    with GateKeeper(path) as keeper:
        keeper.hold(os.getpid())
        keeper.busy()
        started = time.monotonic()
        Gate(path, has_to_stop=lambda: True).pass_step(1000.0)
        assert time.monotonic() - started < 1.0
