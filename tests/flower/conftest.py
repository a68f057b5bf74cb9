"""A running Ondol that Flower watches: a finished embedding, a running fine-tune, and texts that must not be seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery

from tests.cluster import Cluster, running_cluster
from tests.servers import RedisServer
from tests.training_jobs.client import TrainingClient, rows_of_weather
from tests.waiting import wait_until

SECRETS = ("kumquat", "durian", "rambutan", "pomelo")
"""One word each in: an embedding, a fine-tune's file, a job that fails, another application's own events."""
FAR_AWAY = {"num_train_epochs": 10_000, "per_device_train_batch_size": 4}
SEEN_LIMIT_S = 30


@dataclass(frozen=True, slots=True)
class Watched:
    """What runs, and how Flower is reached."""

    cluster: Cluster
    url: str
    password: str
    embedding: dict[str, Any]
    failed: dict[str, Any]
    fine_tune: dict[str, Any]
    foreign_task: str

    def get(self, path: str) -> httpx.Response:
        """Flower's answer to somebody who may look."""
        return self.request("GET", path)

    def request(self, method: str, path: str) -> httpx.Response:
        """Flower's answer to somebody who may look."""
        return httpx.request(method, self.url + path, auth=("ondol", self.password), timeout=30, trust_env=False)

    def wait_for_task(self, task_id: str, state: str) -> dict[str, Any]:
        """A task in Flower's API, once it is in that state."""

        def look() -> dict[str, Any] | None:
            found: dict[str, dict[str, Any]] = self.get("/api/tasks").raise_for_status().json()
            task = found.get(task_id, {})
            return task if task.get("state") == state else None

        task = wait_until(look, within_s=SEEN_LIMIT_S, what=f"{task_id} to be {state} in Flower")
        assert task is not None
        return task


def message_of(job: dict[str, Any]) -> str:
    """The id of a job's task in Flower."""
    return str(job["flower_url"]).rpartition("/")[2]


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory, tiny_version: Path, redis_server: RedisServer
) -> Iterator[Watched]:
    """Api, reconciler, one worker, one trainer node and Flower; the fine-tune runs until the end."""
    redis_server.flush()
    folder = tmp_path_factory.mktemp("watched")
    url = f"sqlite:///{folder / 'ondol.db'}"
    with running_cluster(folder, database_url=url, redis_url=redis_server.url) as cluster:
        flower_url = cluster.start_flower()
        cluster.start_api()
        cluster.start_reconciler()
        cluster.publish(tiny_version, "tiny")
        cluster.start_trainer()
        cluster.start_worker()
        with TrainingClient(cluster.url) as client:
            file = client.upload(rows_of_weather(60).replace("river", SECRETS[1]))
            fine_tune = client.fine_tune(file, hyperparameters=FAR_AWAY, checkpoint_every_s=3600)
            embedding = client.wait(embed(client, [f"a {SECRETS[0]} text"]), "succeeded")
            failed = client.wait(embed(client, [f"{SECRETS[2]} " * 600], truncate="error"), "failed")
            foreign = send_from_elsewhere(redis_server.url)
            client.wait_for_step(fine_tune, 1)
            yield Watched(
                cluster,
                flower_url,
                (folder / "data" / "run" / "flower.password").read_text().strip(),
                embedding,
                failed,
                client.job(fine_tune),
                foreign,
            )
            client.http.post(f"/v1/jobs/{fine_tune}/cancel").raise_for_status()
            wait_until(
                lambda: client.job(fine_tune)["device_released_at"], within_s=30, what="the trainer's device to be free"
            )


def embed(client: TrainingClient, texts: list[str], **options: Any) -> str:
    """An embedding job's id."""
    answer = client.http.post(
        "/v1/jobs", json={"kind": "embedding", "model": "tiny", "input": texts, "options": options}
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def send_from_elsewhere(redis_url: str) -> str:
    """Another application's task, which announces its texts itself; nobody reads its queue. The task's id."""
    app = Celery("elsewhere", broker=redis_url, set_as_current=False)
    app.conf.task_send_sent_event = True
    sent = app.send_task("ondol.embedding", args=(SECRETS[3],), kwargs={"input": [SECRETS[3]]}, queue="elsewhere")
    app.close()
    return str(sent.id)
