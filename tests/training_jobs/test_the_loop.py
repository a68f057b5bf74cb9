"""From a file of rows to a served version, whatever dies on the way. Real processes, a tiny model."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster import Cluster
from tests.training_jobs.client import TrainingClient, rows_of_weather
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

LONG: dict[str, Any] = {
    "hyperparameters": {"num_train_epochs": 6, "per_device_train_batch_size": 4, "learning_rate": 0.001},
    "checkpoint_every_s": 1,
    "validation_split": 0.2,
    "seed": 7,
}
"""360 steps: some seconds on one core."""


def child_of(cluster: Cluster, name: str = "trainer0") -> psutil.Process:
    """The training child; waits until there is one."""

    def find() -> psutil.Process | None:
        children = psutil.Process(cluster.processes[name].pid).children()
        return next((child for child in children if "workers.training.child" in child.cmdline()), None)

    found = wait_until(find, within_s=60, what="a training child")
    assert found is not None
    return found


def test_a_file_becomes_a_served_version_and_the_alias_answers(steady_cluster: Cluster) -> None:
    with TrainingClient(steady_cluster.url) as client:
        job_id = client.fine_tune(
            client.upload(rows_of_weather(240)),
            alias="production",
            hyperparameters={"num_train_epochs": 3, "learning_rate": 0.003},
        )
        client.wait(job_id, "succeeded")
        result = client.result(job_id)
        assert result["model"] == "weather:1"
        assert result["alias"] == {"name": "production", "is_moved": True, "points_to": "weather:1"}
        assert result["labels"] == ["cold", "warm", "wet"]
        assert result["metrics"]["accuracy"] > 0.9
        answer = client.http.post(
            "/models/weather@production", json={"inputs": "the snow of day 3 and the ice", "parameters": {"top_k": 1}}
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()[0][0]["label"] == "cold"
        shown = client.http.get("/v1/models/weather:1").json()
        assert shown["task"] == "text-classification"
        events = client.events(job_id)
        assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
        phases = [e["data"]["phase"] for e in events if e["type"] == "metrics"]
        assert phases.count("evaluation") == 3
        assert client.job(job_id)["progress"]["unit"] == "steps"


def test_a_training_that_dies_again_and_again_ends_as_if_it_had_not(mortal_cluster: Cluster) -> None:
    with TrainingClient(mortal_cluster.url) as client:
        train_file = client.upload(rows_of_weather(300))
        undisturbed = client.fine_tune(train_file, "undisturbed", **LONG)
        client.wait(undisturbed, "succeeded")
        disturbed = client.fine_tune(train_file, "disturbed", **LONG)

        client.wait_for_step(disturbed, 30)
        child_of(mortal_cluster).kill()
        lost_at = wait_for_attempt(client, disturbed, after=client.job(disturbed)["attempt"] - 1)
        client.wait_for_step(disturbed, 70)

        mortal_cluster.kill("trainer0")  # its child ends with it
        mortal_cluster.restart("trainer0")
        wait_for_attempt(client, disturbed, after=lost_at)
        client.wait_for_step(disturbed, 110)

        paused = client.http.post(f"/v1/jobs/{disturbed}/pause")
        assert paused.status_code == 200, paused.text
        assert client.wait(disturbed, "paused")["pause_requested_at"] is None
        torn = tear_newest_checkpoint(mortal_cluster, client, disturbed)
        assert client.http.post(f"/v1/jobs/{disturbed}/resume").status_code == 200
        client.wait_for_step(disturbed, 150)

        attempt = client.job(disturbed)["attempt"]
        assert mortal_cluster.terminate("trainer0") == 0
        assert client.job(disturbed)["status"] == "queued", "a stopping node hands the job back"
        mortal_cluster.restart("trainer0")
        wait_for_attempt(client, disturbed, after=attempt)
        client.wait(disturbed, "succeeded")

        assert client.weights_digest(disturbed) == client.weights_digest(undisturbed)
        said = client.messages(disturbed)
        assert any("checkpoint_corrupt" in line and f"step {torn}" in line for line in said)
        assert any("the trainer ended with signal 9" in line for line in said)
        reasons = [e["data"]["reason"] for e in client.events(disturbed) if e["type"] == "state"]
        for reason in ("process_died", "pause_requested", "resume_requested", "handed_back", "completed"):
            assert reasons.count(reason) == 1, (reason, reasons)
        assert client.http.get("/v1/models/disturbed:2").status_code == 404, "one version, whatever died"


def test_cancelled_is_a_state_at_once_and_the_device_is_free_soon(steady_cluster: Cluster) -> None:
    with TrainingClient(steady_cluster.url) as client:
        job_id = client.fine_tune(client.upload(rows_of_weather(300)), **LONG)
        client.wait_for_step(job_id, 20)
        child = child_of(steady_cluster)
        cancelled = client.http.post(f"/v1/jobs/{job_id}/cancel")
        assert cancelled.json()["status"] == "cancelled"
        wait_until(lambda: client.job(job_id)["device_released_at"], within_s=30, what="the device to be free")
        job = client.job(job_id)
        assert not child.is_running()
        assert job["device_released_at"] - job["finished_at"] < 5
        assert not list((steady_cluster.folder / "data" / "training").glob(f"*/{job_id}*"))


def wait_for_attempt(client: TrainingClient, job_id: str, *, after: int) -> int:
    """The number of the running attempt, once it is above `after`."""

    def look() -> int | None:
        job = client.job(job_id)
        return job["attempt"] if job["status"] == "running" and job["attempt"] > after else None

    found = wait_until(look, within_s=120, what=f"another attempt at {job_id}")
    assert found is not None
    return found


def tear_newest_checkpoint(cluster: Cluster, client: TrainingClient, job_id: str) -> int:
    """Cut the newest checkpoint's optimizer file in the store short; its step."""
    newest = client.http.get(f"/v1/jobs/{job_id}/checkpoints").json()["data"][0]
    folder = Path(cluster.folder / "data" / "store" / "checkpoints" / job_id / f"{newest['step']}-{newest['attempt']}")
    path = folder / "optimizer.pt"
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(data[: len(data) // 2])
    return int(newest["step"])


def test_a_child_that_somebody_else_asks_to_stop_is_no_loss(steady_cluster: Cluster) -> None:
    with TrainingClient(steady_cluster.url) as client:
        job_id = client.fine_tune(client.upload(rows_of_weather(300)), **LONG)
        client.wait_for_step(job_id, 20)
        attempt = client.job(job_id)["attempt"]
        child_of(steady_cluster).terminate()
        wait_for_attempt(client, job_id, after=attempt)
        reasons = [e["data"]["reason"] for e in client.events(job_id) if e["type"] == "state"]
        assert "handed_back" in reasons
        assert "process_died" not in reasons
        client.http.post(f"/v1/jobs/{job_id}/cancel")
        wait_until(lambda: client.job(job_id)["device_released_at"], within_s=30, what="the device to be free")


def test_a_child_that_ignores_sigterm_is_ended(steady_cluster: Cluster) -> None:
    with TrainingClient(steady_cluster.url) as client:
        job_id = client.fine_tune(client.upload(rows_of_weather(300)), **LONG)
        client.wait_for_step(job_id, 20)
        child = child_of(steady_cluster)
        child.send_signal(signal.SIGSTOP)
        assert client.http.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"
        wait_until(lambda: not child.is_running(), within_s=30, what="the stopped child to be ended")
        wait_until(lambda: client.job(job_id)["device_released_at"], within_s=30, what="the device to be free")
