"""A cluster with a tiny model, one worker and an intake, and looks at whether it lives and works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.cluster import Cluster, running_cluster
from tests.waiting import wait_until

MODEL = "tiny"
LIMIT_S = 60


@dataclass(frozen=True, slots=True)
class Stand:
    """The running parts. `http` has a key of the default project where keys are asked for."""

    cluster: Cluster
    worker: str
    secret: str
    http: httpx.Client

    def pids(self) -> dict[str, int]:
        """Process ids of the parts and of the device process."""
        found = {name: process.pid for name, process in self.cluster.processes.items()}
        return found | {"device": self.cluster.device_pid("worker0")}

    def check_alive(self, before: dict[str, int], *, model: str = MODEL) -> None:
        """AssertionError unless the same processes run as before, and run a job and answer a call."""
        for name, process in self.cluster.processes.items():
            assert process.poll() is None, f"{name} ended:\n{self.cluster.log_of(name)[-3000:]}"
        assert self.embed_job("are you there", model=model)["status"] == "succeeded"
        answer = self.http.post("/v1/embeddings", json={"model": model, "input": "are you there"})
        assert answer.status_code == 200, answer.text
        assert self.pids() == before

    def restore_model(self, version: Path) -> None:
        """Publish `tiny` anew and let its name mean that, whatever somebody has done to it before."""
        number = self.cluster.publish(version, MODEL).number
        moved = self.http.put(f"/v1/models/{MODEL}/aliases/default", json={"version": number, "reason": "restored"})
        assert moved.is_success, moved.text

    def embed_job(self, text: str, *, model: str = MODEL) -> dict[str, Any]:
        """An embedding job of one text, ended."""
        submitted = self.http.post("/v1/jobs", json={"kind": "embedding", "model": model, "input": text})
        assert submitted.status_code == 202, submitted.text
        job_id = submitted.json()["id"]

        def ended() -> dict[str, Any] | None:
            job: dict[str, Any] = self.http.get(f"/v1/jobs/{job_id}", params={"wait": 10}).json()
            return job if job["finished_at"] is not None else None

        job = wait_until(ended, within_s=LIMIT_S, what=f"{job_id} to end")
        assert job is not None
        return job


@contextmanager
def running_stand(
    folder: Path, version: Path, *, database_url: str, redis_url: str, **settings: str
) -> Iterator[Stand]:
    """A stand that is closed at the end of the block; `version` is published as `tiny`."""
    settings = {
        "ONDOL_LOG_FORMAT": "json",
        "ONDOL_WEBHOOK_NETWORKS": "127.0.0.0/8",
        "ONDOL_MAX_WAIT_S": "10",  # shorter than schemathesis waits for an answer
        **settings,
    }
    with running_cluster(folder, database_url=database_url, redis_url=redis_url, settings=settings) as cluster:
        cluster.start_api()
        cluster.publish(version, MODEL)
        _, secret = cluster.database.write(
            lambda uow: uow.keys.create(project="default", name="hostile", is_admin=True)
        )
        cluster.start_reconciler()
        worker = cluster.start_worker(faults=[])
        cluster.start_intake()
        headers = {"authorization": f"Bearer {secret}"}
        with httpx.Client(base_url=cluster.url, headers=headers, timeout=60, trust_env=False) as http:
            yield Stand(cluster, worker, secret, http)
