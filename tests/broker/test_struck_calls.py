"""Clients that hang up cost nothing for ever: a worker goes on to take calls; and Redis keeps nothing of a stack."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.cluster import Cluster, running_cluster
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

# A worker takes calls while fewer than 16 budgets of tokens are open: 256.
SMALL = {"ONDOL_MAX_BATCH_TOKENS": "16", "ONDOL_CALL_TIMEOUT_S": "30"}
BROKERS_OWN = ("_kombu.", "unacked", "ondol:canary")


def test_calls_of_clients_that_hung_up_leave_room_for_others(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=SMALL) as cluster:
        cluster.publish(tiny_version, "tiny")
        cluster.start_api()
        cluster.start_reconciler()
        cluster.start_worker(0, faults=["--delay-us-per-token", "5000"])
        assert _call(cluster, "warm", limit_s=30) is not None
        with ThreadPoolExecutor(40) as pool:
            given_up = list(pool.map(lambda i: _call(cluster, f"warm floor {i} " * 4, limit_s=1.0), range(120)))
        assert given_up.count(None) > 60, "most clients hung up"
        answer = wait_until(lambda: _call(cluster, "warm", limit_s=5), within_s=30, what="a call after all of them")
        assert answer is not None
        job = httpx.post(f"{cluster.url}/v1/jobs", json={"kind": "embedding", "model": "tiny", "input": "warm"}).json()
        ended = httpx.get(f"{cluster.url}/v1/jobs/{job['id']}?wait=20", timeout=30).json()
        assert ended["status"] == "succeeded"
    kept = [key for key in empty_redis.keys_without_expiry() if not key.startswith(BROKERS_OWN)]
    assert kept == []


def _call(cluster: Cluster, text: str, *, limit_s: float) -> httpx.Response | None:
    with suppress(httpx.TimeoutException):
        answer = httpx.post(f"{cluster.url}/v1/embeddings", json={"model": "tiny", "input": text}, timeout=limit_s)
        return answer if answer.status_code == 200 else None
    return None
