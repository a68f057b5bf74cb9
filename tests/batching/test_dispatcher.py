"""What the device does to a batch, its rows survive: bisection, memory, a process that dies between batches."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import psutil
import pytest

from ondol.contract.frames import Header
from ondol.contract.states import Priority
from tests.batching.rows import work_of
from tests.device_child import device_options
from tests.device_programs import hash_vector
from tests.waiting import wait_until
from workers.batcher import Batcher
from workers.device_keeper import DeviceKeeper, DeviceProgram
from workers.dispatcher import Dispatcher
from workers.rows import Work

pytestmark = pytest.mark.integration

LIMIT_S = 60.0
TRIGGER = 666


class Device:
    """A dispatcher over the tests' device program."""

    def __init__(self, *faults: str, budget: int = 200) -> None:
        options = device_options(0)[2:]
        program = DeviceProgram((sys.executable, "-m", "tests.device_programs", *faults, *options))
        self.batcher = Batcher(max_batch_tokens=budget)
        self.ran: list[Header] = []
        self.num_starts = 0
        self.keeper = DeviceKeeper(program, forward_limit_s=20, on_up=self._up, on_down=lambda: None)
        self.dispatcher = Dispatcher(self.batcher, self.keeper, on_ran=self.ran.append)

    def _up(self, ready: Header) -> None:
        self.num_starts += 1
        self.pid = int(ready["pid"])

    def run(self, works: list[Work]) -> None:
        """Queue the works and wait for all of them."""
        self.batcher.add(works)
        for work in works:
            assert work.done.wait(LIMIT_S), f"{work.id} is not done"


@contextmanager
def _device(*faults: str, budget: int = 200) -> Iterator[Device]:
    device = Device(*faults, budget=budget)
    device.keeper.start()
    assert device.keeper.wait_up(LIMIT_S)
    device.dispatcher.start()
    try:
        yield device
    finally:
        device.dispatcher.stop()
        device.keeper.stop()


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def test_each_row_gets_its_own_vector() -> None:
    with _device() as device:
        works = [work_of([3, 5], id=str(i), token=i + 1) for i in range(30)]
        device.run(works)
        for i, work in enumerate(works):
            for row, output in zip(work.rows, work.outputs, strict=True):
                assert output is not None
                np.testing.assert_array_equal(output, hash_vector(row.ids, 32), err_msg=f"row of {i}")


def test_identical_rows_run_once_and_each_work_is_answered() -> None:
    with _device() as device:
        works = [work_of([6], id=str(i), token=3) for i in range(50)]
        device.run(works)
        assert sum(header["shape"][0] for header in device.ran) < 50
        for work in works:
            [output] = work.outputs
            assert output is not None and not output.flags.writeable
            np.testing.assert_array_equal(output, hash_vector(work.rows[0].ids, 32))
            assert work.forward_s > 0 and work.started_at is not None


def test_twins_of_a_guilty_row_share_its_end() -> None:
    with _device("--trigger-token", str(TRIGGER)) as device:
        guilty = [work_of([4], id=f"guilty-{i}", token=TRIGGER) for i in range(3)]
        innocent = work_of([4], id="innocent")
        device.run([*guilty, innocent])
        assert all(work.errors[0].code == "worker_lost" and work.num_new_losses == 3 for work in guilty)
        assert not innocent.errors
        assert device.num_starts <= 6, "the three died together, not one after the other"


def test_bisection_isolates_the_guilty_row_and_its_neighbours_succeed() -> None:
    with _device("--trigger-token", str(TRIGGER)) as device:
        guilty = work_of([4], id="guilty", token=TRIGGER)
        innocent = [work_of([4], id=str(i)) for i in range(12)]
        device.run([*innocent[:6], guilty, *innocent[6:]])
        assert guilty.errors[0].code == "worker_lost" and guilty.num_new_losses == 3
        assert all(not work.errors and work.outputs[0] is not None for work in innocent)
        assert device.num_starts >= 4, "one death in company, three alone"


def test_a_row_that_the_device_refuses_fails_alone() -> None:
    with _device("--refused-token", str(TRIGGER)) as device:
        guilty = work_of([4], id="guilty", token=TRIGGER)
        innocent = [work_of([4], id=str(i)) for i in range(7)]
        device.run([*innocent[:3], guilty, *innocent[3:]])
        assert guilty.errors[0].code == "invalid_payload"
        assert all(not work.errors and work.outputs[0] is not None for work in innocent)
        assert device.num_starts == 1


def test_a_guilty_work_that_is_struck_out_kills_no_more() -> None:
    with _device("--trigger-token", str(TRIGGER)) as device:
        guilty = work_of([4], id="guilty", token=TRIGGER)
        device.batcher.add([guilty])
        wait_until(lambda: guilty.rows[0].num_losses, within_s=LIMIT_S, what="the first loss")
        guilty.strike()
        device.run([work_of([4], id="other", age_s=9)])
        assert not guilty.errors


def test_rows_without_memory_fail_alone_and_the_budget_learns() -> None:
    with _device("--oom-above-tokens", "50") as device:
        small, large = work_of([10] * 12, id="small"), work_of([60], id="large")
        device.run([small, large])
        assert large.errors[0].code == "out_of_device_memory"
        assert not small.errors and all(output is not None for output in small.outputs)
        assert any(header["num_halvings"] for header in device.ran)
        assert device.num_starts == 1


def test_a_process_killed_between_batches_costs_no_row() -> None:
    with _device("--delay-us-per-token", "500", budget=40) as device:
        works = [work_of([20], id=str(i)) for i in range(60)]
        device.batcher.add(works)
        for goal in (5, 25):
            wait_until(lambda g=goal: sum(w.done.is_set() for w in works) >= g, within_s=LIMIT_S, what=f"{goal} rows")  # type: ignore[misc]  # bound at definition
            with_starts = device.num_starts
            psutil.Process(device.pid).send_signal(signal.SIGKILL)
            wait_until(lambda n=with_starts: device.num_starts > n, within_s=LIMIT_S, what="a new device process")  # type: ignore[misc]  # bound at definition
        for work in works:
            assert work.done.wait(LIMIT_S)
            assert not work.errors


def test_nobody_waits_for_a_device_process_once_it_is_stopped() -> None:
    program = DeviceProgram((sys.executable, "-c", "import signal; signal.pause()"))  # it never says that it is ready
    keeper = DeviceKeeper(program, forward_limit_s=20, on_up=lambda _: None, on_down=lambda: None)
    keeper.start()
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(keeper.wait_up, 2 * LIMIT_S)
        keeper.stop()
        assert not waiting.result(LIMIT_S)


def test_a_work_that_must_be_alone_shares_the_device_with_nobody() -> None:
    with _device() as device:
        alone = work_of([5, 5], id="alone", is_alone=True)
        device.run([work_of([5], id="a"), alone, work_of([5], id="b", priority=Priority.BULK)])
        assert not alone.errors
        assert [header["shape"][0] for header in device.ran].count(1) >= 2
