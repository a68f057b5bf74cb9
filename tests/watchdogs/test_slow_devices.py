"""A device process that takes its time to come back costs no attempt of the jobs that come meanwhile."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from ondol.sql.tables import attempts
from tests.cluster import running_cluster
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]


def test_a_job_waits_for_a_device_that_is_being_replaced(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    closed = tmp_path / "closed"
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url) as cluster:
        cluster.start_api()
        cluster.start_reconciler()
        cluster.publish(tiny_version, "tiny")
        worker = cluster.start_worker(faults=["--does-not-start-if", str(closed)])
        closed.touch()
        os.kill(cluster.device_pid(worker), signal.SIGKILL)
        wait_until(lambda: cluster.log_of(worker).count("device.lost") > 1, within_s=30, what="a start that failed")
        body = {"kind": "embedding", "model": "tiny", "input": "warm"}
        job_id = httpx.post(f"{cluster.url}/v1/jobs", json=body).raise_for_status().json()["id"]
        deaths = cluster.log_of(worker).count("device.lost")
        wait_until(
            lambda: _status(cluster.url, job_id) == "running" and cluster.log_of(worker).count("device.lost") > deaths,
            within_s=30,
            what="the worker to hold the job while its device fails to start",
        )
        closed.unlink()
        wait_until(lambda: _status(cluster.url, job_id) == "succeeded", within_s=60, what="the job to succeed")
        query = sa.select(attempts.c.attempt, attempts.c.outcome).where(attempts.c.job_id == job_id)
        ran = cluster.database.read(lambda uow: [tuple(row) for row in uow.conn.execute(query)])
        assert ran == [(1, "succeeded")]


def _status(url: str, job_id: str) -> str:
    return str(httpx.get(f"{url}/v1/jobs/{job_id}").raise_for_status().json()["status"])
