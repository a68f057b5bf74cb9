"""A trainer that takes no more steps is ended and resumed; one that evaluates, saves or waits at the gate is not."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster import Cluster, running_cluster
from tests.servers import RedisServer
from tests.training_jobs.client import TrainingClient, rows_of_weather
from tests.waiting import wait_until
from workers.training.child.pulse import BETWEEN, STEPS, Pulse
from workers.training.gate import GateKeeper
from workers.training.stall import StallWatch

STALL_S = 2.0
CURED_WITHIN_S = 30
QUICK = {
    "ONDOL_TRAIN_STALL_S": f"{STALL_S:g}",
    "ONDOL_LEASE_S": "3",
    "ONDOL_RENEW_S": "0.5",
    "ONDOL_RUNG_UNCLAIMED_S": "1",
}
LONG: dict[str, Any] = {
    "hyperparameters": {"num_train_epochs": 12, "per_device_train_batch_size": 4, "learning_rate": 0.001},
    "checkpoint_every_s": 1,
    "validation_split": 0.2,
}


@pytest.fixture
def cluster(tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path) -> Iterator[Cluster]:
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=QUICK) as started:
        started.publish(tiny_version, "tiny")
        started.start_api()
        started.start_reconciler()
        started.start_trainer()
        yield started


@pytest.mark.chaos
@pytest.mark.integration
def test_a_stalled_child_is_replaced_a_held_one_is_not_and_none_outlives_its_node(cluster: Cluster) -> None:
    with TrainingClient(cluster.url) as client:
        job_id = client.fine_tune(client.upload(rows_of_weather(300)), **LONG)
        client.wait_for_step(job_id, 20)
        child, first = child_of(cluster), client.job(job_id)["attempt"]
        _hold_longer_than_a_stall(cluster, child)
        assert client.job(job_id)["attempt"] == first and child.is_running(), "who waits at the gate does not hang"

        reached = client.wait_for_step(job_id, 40)
        child.send_signal(signal.SIGSTOP)
        wait_until(lambda: not child.is_running(), within_s=CURED_WITHIN_S, what="the hung child to be ended")
        wait_until(lambda: client.job(job_id)["attempt"] == first + 1, within_s=CURED_WITHIN_S, what="the next attempt")
        repairs = cluster.database.read(lambda uow: uow.leaders.repair_counts())
        assert repairs["trainer_stalled"] == 1
        assert any("the trainer was ended: no step for" in line for line in client.messages(job_id))
        wait_until(
            lambda: any("training goes on from step" in line for line in client.messages(job_id)),
            within_s=CURED_WITHIN_S,
            what="the training to go on",
        )
        client.wait_for_step(job_id, reached + 5)

        second = child_of(cluster)
        assert _holds_the_device(second), "the device is held as long as a child is there"
        cluster.kill("trainer0")
        cluster.restart("trainer0")
        wait_until(lambda: not second.is_running(), within_s=CURED_WITHIN_S, what="the orphan to end")
        wait_until(
            lambda: client.job(job_id)["attempt"] == first + 2, within_s=CURED_WITHIN_S, what="the third attempt"
        )
        assert len(_children()) <= 1, "never two trainings on one device"
        client.http.post(f"/v1/jobs/{job_id}/cancel")
        wait_until(lambda: client.job(job_id)["device_released_at"], within_s=30, what="the device to be free")


def _hold_longer_than_a_stall(cluster: Cluster, child: psutil.Process) -> None:
    with GateKeeper(cluster.folder / "data" / "run" / "gate-cpu0") as gate:
        gate.hold(child.pid)
        over_at = time.monotonic() + 2 * STALL_S
        wait_until(lambda: time.monotonic() > over_at, within_s=3 * STALL_S, what="twice the time of a stall")
        gate.release()


def child_of(cluster: Cluster) -> psutil.Process:
    """The training child of the node that lives; waits until there is one."""

    def find() -> psutil.Process | None:
        return next((one for one in _children() if one.ppid() == cluster.processes["trainer0"].pid), None)

    found = wait_until(find, within_s=60, what="a training child")
    assert found is not None
    return found


def _children() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "workers.training.child" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def _holds_the_device(child: psutil.Process) -> bool:
    return any(Path(file.path).name.startswith("device-train-cpu0@") for file in child.open_files())


class Clock:
    """A child's life by hand: its events, its CPU time, and the looks at it, one every half a second."""

    def __init__(self) -> None:
        self.now, self.used_s = 100.0, 0.0
        self.watch = StallWatch(20.0, cpu_s=lambda: self.used_s, now=self.now)

    def pulse(self, phase: str, longest_s: float | None) -> None:
        self.watch.heard({"event": "pulse", "phase": phase, "longest_s": longest_s})

    def is_hung_after(self, silence_s: float, *, busy_share: float = 0.0) -> bool:
        for _ in range(int(silence_s / 0.5)):
            self.now += 0.5
            self.used_s += 0.5 * busy_share
            if self.watch.look(self.now):
                return True
        return False


@pytest.mark.unit
def test_steps_are_waited_for_ten_times_as_long_as_they_took() -> None:
    clock = Clock()
    clock.pulse(STEPS, 0.5)
    assert not clock.is_hung_after(19.5)
    assert clock.is_hung_after(2)
    slow = Clock()
    slow.pulse(STEPS, 6.0)
    assert not slow.is_hung_after(59)
    assert slow.is_hung_after(2, busy_share=1.0), "also one that spins"


@pytest.mark.unit
@pytest.mark.parametrize("phase", [BETWEEN, STEPS])
def test_whoever_works_without_steps_is_left_alone(phase: str) -> None:
    clock = Clock()
    clock.pulse(phase, None)  # evaluating, saving; or its very first step
    assert not clock.is_hung_after(3_600, busy_share=0.5)
    assert not clock.is_hung_after(115)
    assert clock.is_hung_after(10), "two minutes without a word or any work"


@pytest.mark.unit
def test_a_node_that_stood_still_does_not_blame_its_child() -> None:
    clock = Clock()
    clock.pulse(STEPS, 0.5)
    clock.now += 3_600
    assert clock.watch.look(clock.now) is None


@pytest.mark.unit
def test_a_pulse_tells_the_pace_without_many_words() -> None:
    said: list[dict[str, Any]] = []

    class Events:
        def send(self, event: str, **fields: Any) -> None:
            said.append({"event": event, **fields})

    pulse = Pulse(Events())  # type: ignore[arg-type]  # all that it uses
    for _ in range(100):
        pulse.end_pass()
        pulse.begin_pass()
    pulse.between()
    assert [(one["phase"], one["longest_s"] is None) for one in said] == [
        (STEPS, True),
        (STEPS, False),
        (BETWEEN, False),
    ]
