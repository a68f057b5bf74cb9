"""5,000 accepted jobs, while worker, device process, reconciler and Redis die around them: each succeeds once."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import sqlalchemy as sa

from ondol.sql.database import Database
from ondol.sql.tables import attempts, events, jobs, results
from tests.cluster import Cluster, running_cluster
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.integration, pytest.mark.timeout(400)]

NUM_JOBS = 5_000
BATCH = 500
FINISH_LIMIT_S = 240
FAST = {
    "ONDOL_LEASE_S": "3",
    "ONDOL_RENEW_S": "0.8",
    "ONDOL_RUNG_UNCLAIMED_S": "2",
    "ONDOL_LEADER_LEASE_S": "2",
    "ONDOL_TICK_S": "0.5",
}


def test_5000_jobs_survive_the_death_of_every_part(
    tmp_path: Path, database_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    with running_cluster(tmp_path, database_url=database_url, redis_url=empty_redis.url, settings=FAST) as cluster:
        cluster.publish(tiny_version, "tiny")
        cluster.start_api()
        cluster.start_reconciler()
        worker = cluster.start_worker(0, faults=["--delay-us-per-token", "200"])
        ids = _submit_all(cluster)
        for share, fault in enumerate(_faults(cluster, worker, empty_redis), start=1):
            _wait_for_progress(cluster, share * NUM_JOBS // 14)
            fault()
        wait_until(lambda: _num_terminal(cluster.database) == NUM_JOBS, within_s=FINISH_LIMIT_S, what="all jobs to end")
        _check_each_has_one_effect(cluster.database, ids)
        repairs = cluster.database.read(lambda uow: uow.leaders.repair_counts())
        assert repairs.get("session_lapsed", 0) + repairs.get("session_superseded", 0) >= 3


def _faults(cluster: Cluster, worker: str, redis: RedisServer) -> list[Callable[[], None]]:
    def kill_worker() -> None:
        cluster.kill(worker)
        cluster.restart(worker)

    def kill_device() -> None:
        psutil.Process(cluster.device_pid(worker)).kill()

    def kill_reconciler() -> None:
        cluster.kill("reconciler")
        cluster.restart("reconciler")

    faults = [kill_worker] * 3 + [kill_device] * 3 + [kill_reconciler, redis.flush, redis.restart]
    random.Random(7).shuffle(faults)
    return faults


def _submit_all(cluster: Cluster) -> list[str]:
    ids: list[str] = []
    with httpx.Client(base_url=cluster.url, timeout=60) as client:
        for start in range(0, NUM_JOBS, BATCH):
            texts = [f"the warm floor number {i}" for i in range(start, start + BATCH)]
            body = {"jobs": [{"kind": "embedding", "model": "tiny", "input": text} for text in texts]}
            answer = client.post("/v1/jobs/batch", json=body, headers={"Idempotency-Key": f"batch-{start}"})
            assert answer.status_code in (200, 202), answer.text
            ids += [job["id"] for job in answer.json()["data"]]
    return ids


def _wait_for_progress(cluster: Cluster, num: int) -> None:
    wait_until(lambda: _num_terminal(cluster.database) >= num, within_s=FINISH_LIMIT_S, what=f"{num} finished jobs")


def _num_terminal(database: Database) -> int:
    query = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.finished_at.is_not(None))
    return database.read(lambda uow: int(uow.conn.execute(query).scalar_one()))


def _check_each_has_one_effect(database: Database, ids: list[str]) -> None:
    assert len(set(ids)) == NUM_JOBS

    def count(query: sa.Select[Any]) -> int:
        return database.read(lambda uow: int(uow.conn.execute(query).scalar_one()))

    one = sa.select(sa.func.count())
    assert count(one.select_from(jobs).where(jobs.c.state == "succeeded")) == NUM_JOBS
    assert count(one.select_from(results)) == NUM_JOBS
    assert count(one.select_from(attempts).where(attempts.c.outcome == "succeeded")) == NUM_JOBS
    same_attempt = one.select_from(results.join(jobs, results.c.job_id == jobs.c.id)).where(
        results.c.attempt == jobs.c.attempt
    )
    assert count(same_attempt) == NUM_JOBS
    assert count(one.select_from(attempts).where(attempts.c.outcome.is_(None))) == 0
    highest = sa.select(sa.func.sum(jobs.c.event_seq))
    assert count(highest) == count(one.select_from(events))
