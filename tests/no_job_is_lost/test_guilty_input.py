"""An input that kills the device process every time fails alone; its neighbours succeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from tests.cluster import Cluster, running_cluster
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]

GUILTY = "queue"


def test_a_guilty_text_fails_as_worker_lost_and_its_neighbours_succeed(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    trigger = _token_of(tiny_version, GUILTY)
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url) as cluster:
        cluster.publish(tiny_version, "tiny")
        cluster.start_api()
        cluster.start_reconciler()
        cluster.start_worker(0, faults=["--trigger-token", str(trigger)])
        texts = [f"warm house {i}" for i in range(20)] + [f"a {GUILTY} remembers"] + ["the fire burns"] * 20
        body = {"jobs": [{"kind": "embedding", "model": "tiny", "input": text} for text in texts]}
        answer = httpx.post(f"{cluster.url}/v1/jobs/batch", json=body, timeout=30).json()
        ended = [_wait(cluster, job["id"]) for job in answer["data"]]
        failed = [job for job in ended if job["status"] == "failed"]
        assert [job["error"]["code"] for job in failed] == ["worker_lost"]
        assert failed[0]["id"] == answer["data"][20]["id"]
        assert sum(job["status"] == "succeeded" for job in ended) == 40


def test_in_one_job_the_guilty_item_is_an_item_error(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    trigger = _token_of(tiny_version, GUILTY)
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url) as cluster:
        cluster.publish(tiny_version, "tiny")
        cluster.start_api()
        cluster.start_reconciler()
        cluster.start_worker(0, faults=["--trigger-token", str(trigger)])
        texts = ["warm house", f"a {GUILTY} remembers", "the fire burns"]
        job = httpx.post(f"{cluster.url}/v1/jobs", json={"kind": "embedding", "model": "tiny", "input": texts}).json()
        assert _wait(cluster, job["id"])["status"] == "succeeded"
        items = httpx.get(f"{cluster.url}/v1/jobs/{job['id']}/result").json()["data"]
        assert ["output" in item for item in items] == [True, False, True]
        assert items[1]["error"]["code"] == "worker_lost"


def _wait(cluster: Cluster, job_id: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        job: dict[str, Any] = httpx.get(f"{cluster.url}/v1/jobs/{job_id}?wait=10", timeout=30).json()
        return job if job["status"] in ("succeeded", "failed", "cancelled") else None

    found = wait_until(ended, within_s=90, what=f"{job_id} to end")
    assert found is not None
    return found


def _token_of(version: Path, word: str) -> int:
    tokenizer = Tokenizer.from_file(str(version / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(f"a {word} remembers", add_special_tokens=False).ids
    others = {i for text in ("warm house 0123456789", "the fire burns") for i in tokenizer.encode(text).ids}
    return next(i for i in ids if i not in others)
