"""Two devices: what one cannot run any more, the other runs."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from ondol.contract.states import JobState
from ondol.sql.records import SessionRecord
from ondol.sql.tables import attempts, jobs, sessions
from tests.cluster import Cluster, running_cluster
from tests.publishing import import_here
from tests.servers import RedisServer
from tests.waiting import wait_until
from workers.offline_models import MINILM, offline_model_folders

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

FAST = {
    "ONDOL_LEASE_S": "3",
    "ONDOL_RENEW_S": "0.8",
    "ONDOL_RUNG_UNCLAIMED_S": "2",
    "ONDOL_LEADER_LEASE_S": "2",
    "ONDOL_TICK_S": "0.5",
    "ONDOL_MESSAGE_JOBS": "8",
}
NUM_JOBS = 60
LIMIT_S = 60


def _submit(cluster: Cluster, num: int = NUM_JOBS, *, model: str = "tiny") -> None:
    body = {"jobs": [{"kind": "embedding", "model": model, "input": f"a warm floor, number {i}"} for i in range(num)]}
    httpx.post(f"{cluster.url}/v1/jobs/batch", json=body, timeout=30, trust_env=False).raise_for_status()


def _open(cluster: Cluster) -> list[SessionRecord]:
    return cluster.database.read(lambda uow: uow.sessions.open_sessions())


def _num(cluster: Cluster, state: JobState) -> int:
    query = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.state == state)
    return cluster.database.read(lambda uow: int(uow.conn.execute(query).scalar_one()))


def _succeeded_by_worker(cluster: Cluster) -> Counter[str]:
    query = sa.select(attempts.c.worker).where(attempts.c.outcome == "succeeded")
    return Counter(row.worker.partition("@")[0] for row in cluster.database.read(lambda u: u.conn.execute(query).all()))


def test_what_a_killed_worker_held_runs_on_the_other_device(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=FAST) as cluster:
        cluster.publish(tiny_version, "tiny")
        cluster.start_api()
        cluster.start_reconciler()
        first = cluster.start_worker(0, faults=["--delay-us-per-token", "20000"])
        _submit(cluster)
        wait_until(lambda: _num(cluster, JobState.RUNNING) >= 8, within_s=LIMIT_S, what="the first device to run jobs")
        cluster.start_worker(1, faults=[], cores="1")
        cluster.kill(first)
        wait_until(lambda: _num(cluster, JobState.SUCCEEDED) == NUM_JOBS, within_s=LIMIT_S, what="all jobs to end")
        assert _succeeded_by_worker(cluster)["cpu1"] >= 8


def test_a_hot_model_is_served_by_both_devices(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=FAST) as cluster:
        cluster.publish(tiny_version, "tiny")
        cluster.start_api()
        cluster.start_reconciler()
        for number in (0, 1):
            cluster.start_worker(number, faults=["--delay-us-per-token", "2000"], cores=str(number))
        _submit(cluster, 120)
        wait_until(lambda: _num(cluster, JobState.SUCCEEDED) == 120, within_s=LIMIT_S, what="all jobs to end")
        assert set(_succeeded_by_worker(cluster)) == {"cpu0", "cpu1"}


def test_a_worker_whose_device_does_not_start_again_gives_its_window_up(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=FAST) as cluster:
        cluster.publish(tiny_version, "tiny")
        cluster.start_api()
        cluster.start_reconciler()
        stop = tmp_path / "broken"
        broken = cluster.start_worker(0, faults=["--delay-us-per-token", "20000", "--does-not-start-if", str(stop)])
        _submit(cluster, 16)
        wait_until(lambda: _num(cluster, JobState.RUNNING) >= 8, within_s=LIMIT_S, what="the first device to run jobs")
        cluster.start_worker(1, faults=[], cores="1")
        stop.touch()
        os.kill(cluster.device_pid(broken), signal.SIGKILL)
        wait_until(lambda: _num(cluster, JobState.SUCCEEDED) == 16, within_s=LIMIT_S, what="all jobs to end")
        query = sa.select(sessions.c.end_reason).where(sessions.c.worker.startswith("cpu0@"))
        reasons = [row.end_reason for row in cluster.database.read(lambda uow: uow.conn.execute(query).all())]
        assert reasons == ["device_down"], "no new session while there is no device"
        assert _num(cluster, JobState.FAILED) == 0
        stop.unlink()
        wait_until(
            lambda: any(s.worker.startswith("cpu0@") and s.is_ready for s in _open(cluster)),
            within_s=LIMIT_S,
            what="the worker to be back with its device",
        )


def test_a_model_that_no_device_holds_fails_its_job_with_the_sizes(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer
) -> None:
    import_here(offline_model_folders()[MINILM], tmp_path / "version")
    settings = {**FAST, "ONDOL_DEVICE_MEMORY_MB": "64", "ONDOL_DTYPE": "float32"}
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=settings) as cluster:
        cluster.publish(tmp_path / "version", "large")
        cluster.start_api()
        cluster.start_reconciler()
        cluster.start_worker(0)
        [session] = _open(cluster)
        assert session.memory_bytes == 64 * 1024**2
        _submit(cluster, 1, model="large")
        wait_until(lambda: _num(cluster, JobState.FAILED) == 1, within_s=LIMIT_S, what="the job to fail")
        query = sa.select(jobs.c.error, jobs.c.attempt)
        [row] = cluster.database.read(lambda uow: uow.conn.execute(query).all())
        assert row.error["code"] == "model_too_large" and row.attempt == 1
        assert "64.0 MiB" in row.error["message"] and row.error["message"].count("MiB") >= 2
