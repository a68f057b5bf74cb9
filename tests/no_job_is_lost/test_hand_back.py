"""SIGTERM is no loss: what a worker holds goes back to the queue, and another worker finishes it."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from ondol.sql.tables import attempts, jobs, messages
from tests.cluster import Cluster, running_cluster
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

NUM_JOBS = 300
GRACE_S = 10.0


def test_a_stopping_worker_hands_back_and_another_finishes(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url) as cluster:
        cluster.publish(tiny_version, "tiny")
        cluster.start_api()
        slow = cluster.start_worker(0, faults=["--delay-us-per-token", "20000"])
        _submit(cluster)
        wait_until(lambda: _count(cluster, jobs.c.state == "running") > 0, within_s=30, what="claimed jobs")
        began = time.monotonic()
        assert cluster.terminate(slow) == 0
        assert time.monotonic() - began < GRACE_S
        assert _count(cluster, jobs.c.state == "running") == 0
        assert _count(cluster, jobs.c.state == "queued") > 0
        assert _count(cluster, (jobs.c.num_lapses > 0) | (jobs.c.num_losses > 0) | (jobs.c.num_retries > 0)) == 0
        left = sa.select(sa.func.count()).select_from(messages)
        assert cluster.database.read(lambda uow: uow.conn.execute(left).scalar_one()) == 0, "no window place is lost"

        cluster.start_worker(0, faults=[])
        cluster.start_reconciler()
        wait_until(lambda: _count(cluster, jobs.c.state == "succeeded") == NUM_JOBS, within_s=60, what="all jobs")
        outcomes = sa.select(attempts.c.outcome).distinct()
        found = set(cluster.database.read(lambda uow: uow.conn.execute(outcomes).scalars().all()))
        assert found == {"handed_back", "succeeded"}


def _submit(cluster: Cluster) -> None:
    body = {"jobs": [{"kind": "embedding", "model": "tiny", "input": f"warm floor {i}"} for i in range(NUM_JOBS)]}
    assert httpx.post(f"{cluster.url}/v1/jobs/batch", json=body, timeout=30).status_code in (200, 202)


def _count(cluster: Cluster, condition: sa.ColumnElement[bool]) -> int:
    query = sa.select(sa.func.count()).select_from(jobs).where(condition)
    return cluster.database.read(lambda uow: int(uow.conn.execute(query).scalar_one()))
