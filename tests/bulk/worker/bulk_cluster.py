"""A cluster whose jobs have files as inputs: upload, submit, look at the shards, read what they found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import psutil
import sqlalchemy as sa

from models_store.result_blobs import ResultBlobs
from ondol.contract.states import TERMINAL
from ondol.sql.records import ShardRecord
from ondol.sql.tables import attempts, jobs
from tests.cluster import Cluster
from tests.waiting import wait_until

FloatArray = np.ndarray[Any, np.dtype[np.float32]]

MESSAGE_TOKENS = 2_048
SETTINGS = {
    "ONDOL_LEASE_S": "3",
    "ONDOL_RENEW_S": "0.8",
    "ONDOL_RUNG_UNCLAIMED_S": "2",
    "ONDOL_LEADER_LEASE_S": "2",
    "ONDOL_TICK_S": "0.5",
    "ONDOL_MESSAGE_TOKENS": str(MESSAGE_TOKENS),
}
END_LIMIT_S = 120


@dataclass(frozen=True, slots=True)
class ShardState:
    """A shard's row: its state and the number of its last attempt."""

    id: str
    state: str
    attempt: int


class BulkCluster:
    """What a user and an operator of a running cluster do about bulk jobs."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.http = httpx.Client(base_url=cluster.url, timeout=60, trust_env=False)
        self._blobs = ResultBlobs(f"file://{cluster.folder / 'data' / 'store'}")

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def upload(self, filename: str, content: bytes) -> str:
        """An uploaded file's id."""
        files = {"file": (filename, content)}
        answer = self.http.post("/v1/files", data={"purpose": "batch"}, files=files)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def submit_file(self, filename: str, content: bytes, **fields: Any) -> str:
        """A job on a file of this content; its id."""
        file_id = self.upload(filename, content)
        body = {"kind": "embedding", "model": "tiny", "input_file": file_id, **fields}
        answer = self.http.post("/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as its owner sees it."""
        found: dict[str, Any] = self.http.get(f"/v1/jobs/{job_id}").raise_for_status().json()
        return found

    def wait(self, job_id: str) -> dict[str, Any]:
        """The job at its end."""

        def ended() -> dict[str, Any] | None:
            found = self.job(job_id)
            return found if found["status"] in TERMINAL else None

        found = wait_until(ended, within_s=END_LIMIT_S, what=f"{job_id} to end")
        assert found is not None
        return found

    def shards(self, job_id: str) -> list[ShardState]:
        """The rows of a job's shards, in order."""
        query = sa.select(jobs.c.id, jobs.c.state, jobs.c.attempt).where(jobs.c.parent_id == job_id).order_by(jobs.c.id)
        return self.cluster.database.read(lambda uow: [ShardState(*row) for row in uow.conn.execute(query)])

    def outcomes(self, job_id: str) -> list[str | None]:
        """How the attempts of a job or shard ended, in order."""
        query = sa.select(attempts.c.outcome).where(attempts.c.job_id == job_id).order_by(attempts.c.attempt)
        return self.cluster.database.read(lambda uow: list(uow.conn.execute(query).scalars()))

    def results(self, job_id: str) -> list[ShardRecord]:
        """All shards in order, with what they found."""

        def page_from(first: int) -> list[ShardRecord]:
            return self.cluster.database.read(lambda uow: uow.shards.page(job_id, from_input=first))

        num_inputs = int(self.job(job_id)["progress"]["total"])
        found = page_from(0)
        while (end := found[-1].first_input + found[-1].num_inputs) < num_inputs:
            found += page_from(end)
        return found

    def vectors(self, job_id: str) -> FloatArray:
        """The vectors [N, H] of all shards, wherever they stand."""
        return np.concatenate([self.vectors_of_shard(shard) for shard in self.results(job_id)])

    def vectors_of_shard(self, shard: ShardRecord) -> FloatArray:
        """The vectors [N, H] of one shard that succeeded."""
        assert shard.result is not None, shard
        data = shard.result.data
        if shard.result.blob_path is not None:
            data = self._blobs.read(shard.result.blob_path, sha256=shard.result.sha256)
        assert data is not None
        vectors = np.frombuffer(data, dtype="<f4").reshape(shard.result.summary["shape"])
        assert len(vectors) == shard.num_inputs
        return vectors

    def vectors_of_small_jobs(self, texts: list[str], size: int) -> FloatArray:
        """The vectors [N, H] of the texts as whole jobs of so many texts each."""
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        body = {"jobs": [{"kind": "embedding", "model": "tiny", "input": part} for part in parts]}
        answer = self.http.post("/v1/jobs/batch", json=body).raise_for_status()
        found = []
        for one in answer.json()["data"]:
            assert self.wait(one["id"])["status"] == "succeeded"
            assert self.shards(one["id"]) == []
            record = self.cluster.database.read(lambda uow, name=one["id"]: uow.results.get(name))  # type: ignore[misc]  # bound at definition
            assert record.data is not None
            found.append(np.frombuffer(record.data, dtype="<f4").reshape(record.summary["shape"]))
        return np.concatenate(found)

    def planning_children(self, worker: str) -> list[psutil.Process]:
        """The planning children of a worker that runs."""
        found = psutil.Process(self.cluster.processes[worker].pid).children()
        return [child for child in found if _is_planning(child)]


def _is_planning(process: psutil.Process) -> bool:
    try:
        return "workers.sharding" in process.cmdline()
    except psutil.Error:
        return False
