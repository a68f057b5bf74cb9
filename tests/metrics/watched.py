"""A running Ondol whose every process is scraped, and what a scrape says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import sqlalchemy as sa
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from ondol.control.host import free_port
from ondol.sql.tables import messages
from tests.cluster import Cluster

SECRET = "kingfisher"
"""A word that stands in every input of these tests, and nowhere else."""


@dataclass(slots=True)
class Scrape:
    """What one process exports now."""

    families: dict[str, Metric]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels; 0 where there are none."""
        return sum(
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def read_scrape(text: str) -> Scrape:
    """What Prometheus' own parser makes of the text."""
    return Scrape({family.name: family for family in text_string_to_metric_families(text)})


@dataclass(slots=True)
class Watched:
    """A cluster, and the port of each process's `/metrics`."""

    cluster: Cluster
    ports: dict[str, int] = field(default_factory=dict)

    def start(self, name: str, *, faults: tuple[str, ...] = ()) -> None:
        """Start `reconciler`, `worker0` (with the tests' device program) or `trainer0` with a port of its own."""
        self.ports[name] = free_port()
        self.cluster.environment["ONDOL_METRICS_PORT"] = str(self.ports[name])
        if name == "reconciler":
            self.cluster.start_reconciler()
        elif name == "trainer0":
            self.cluster.start_trainer()
        else:
            self.cluster.start_worker(faults=faults)
        del self.cluster.environment["ONDOL_METRICS_PORT"]

    def scrape(self, name: str) -> Scrape:
        """What the process exports."""
        port = self.cluster.port if name == "api" else self.ports[name]
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30, trust_env=False).raise_for_status()
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return read_scrape(answer.text)

    def submit(self, num: int = 1, text: str = SECRET, **fields: Any) -> list[str]:
        """So many jobs in one transaction; their ids."""
        body = {"kind": "embedding", "model": "tiny", "input": [text], **fields}
        answer = httpx.post(
            f"{self.cluster.url}/v1/jobs/batch", json={"jobs": [body] * num}, timeout=30, trust_env=False
        )
        return [job["id"] for job in answer.raise_for_status().json()["data"]]

    def state(self, job_id: str) -> str:
        """The job's state; the last second is waited for its end."""
        answer = httpx.get(f"{self.cluster.url}/v1/jobs/{job_id}?wait=1", timeout=30, trust_env=False)
        return str(answer.raise_for_status().json()["status"])

    def num_messages(self, worker: str, *, is_claimed: bool) -> int:
        """Messages that are rung for workers whose names begin so, claimed or not."""
        claimed = messages.c.claimed_at.is_not(None) if is_claimed else messages.c.claimed_at.is_(None)
        query = sa.select(sa.func.count()).select_from(messages).where(messages.c.worker.startswith(worker), claimed)
        return self.cluster.database.read(lambda uow: int(uow.conn.execute(query).scalar_one()))

    def is_warm(self, worker: str, model: str) -> bool:
        """Whether a worker whose name begins so says that it holds the model's first version."""
        sessions = self.cluster.database.read(lambda uow: uow.sessions.open_sessions())
        return any(each.worker.startswith(worker) and f"{model}:1" in each.warm for each in sessions)

    def lines(self, name: str) -> list[Mapping[str, Any]]:
        """The events in the log of a process; warnings that Python itself prints are none."""
        return [json.loads(line) for line in self.cluster.log_of(name).splitlines() if line.startswith("{")]
