"""A worker for which work lies and that hears nothing: it is noticed, cured and counted, and the work is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ondol.contract.model_ref import ModelRef
from ondol.sql.ringing import WindowLimits
from tests.cluster import Cluster, running_cluster
from tests.job_fixtures import new_job
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.watchdogs.proxy import HalfOpenLink

pytestmark = [pytest.mark.chaos, pytest.mark.integration]

CURED_WITHIN_S = 30
QUICK = {
    "ONDOL_UNHEARD_S": "2",
    "ONDOL_LEASE_S": "3",
    "ONDOL_RENEW_S": "0.5",
    "ONDOL_RUNG_UNCLAIMED_S": "1",
    "ONDOL_TICK_S": "0.3",
}


def test_a_worker_on_a_half_open_link_connects_anew_and_keeps_its_models(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    with HalfOpenLink(empty_redis.port) as link, _cluster(tmp_path, sqlite_url, empty_redis, tiny_version) as cluster:
        cluster.start_reconciler()
        _start_worker_behind(link, cluster, empty_redis)
        ended_in_sql(cluster, add_jobs(cluster, 1))
        worker, device = cluster.processes["worker0"].pid, cluster.device_pid("worker0")
        before = repairs(cluster)
        assert link.swallow() > 0
        ended_in_sql(cluster, add_jobs(cluster, 3))
        assert repairs(cluster)["worker_deaf"] == before.get("worker_deaf", 0) + 1
        assert psutil.pid_exists(worker) and cluster.device_pid("worker0") == device, "no process was replaced"
        assert "worker_restarted" not in repairs(cluster)


def test_a_worker_that_redis_does_not_answer_gives_its_work_to_others(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    with HalfOpenLink(empty_redis.port) as link, _cluster(tmp_path, sqlite_url, empty_redis, tiny_version) as cluster:
        cluster.start_reconciler()
        _start_worker_behind(link, cluster, empty_redis)
        ended_in_sql(cluster, add_jobs(cluster, 1))  # the cut-off worker is the warm one
        cluster.start_worker(1, faults=[])
        link.swallow_all()
        wait_until(lambda: ready(cluster) == ["cpu1"], within_s=CURED_WITHIN_S, what="the cut-off worker to step back")
        ended_in_sql(cluster, add_jobs(cluster, 3))
        link.heal()
        wait_until(lambda: ready(cluster) == ["cpu0", "cpu1"], within_s=CURED_WITHIN_S, what="it to come back")


def test_an_idle_worker_rings_what_nobody_rings(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    with _cluster(tmp_path, sqlite_url, empty_redis, tiny_version) as cluster:
        cluster.start_worker(0, faults=[])  # no api and no reconciler: nobody rings
        waiting = add_jobs(cluster, 2)
        ended_in_sql(cluster, waiting)
        wait_until(lambda: repairs(cluster).get("backlog_idle") == 1, within_s=CURED_WITHIN_S, what="it to be counted")

        lost = add_jobs(cluster, 2)
        rung = cluster.database.write(lambda uow: uow.ringing.choose(WindowLimits()))
        assert {job_id for message in rung for job_id, _ in message.jobs} == set(lost), "rung, and never published"
        ended_in_sql(cluster, lost)
        assert repairs(cluster)["message_lost"] == len(rung)


@contextmanager
def _cluster(folder: Path, database_url: str, redis: RedisServer, version: Path) -> Iterator[Cluster]:
    with running_cluster(folder, database_url=database_url, redis_url=redis.url, settings=QUICK) as cluster:
        cluster.publish(version, "tiny")
        yield cluster


def _start_worker_behind(link: HalfOpenLink, cluster: Cluster, redis: RedisServer) -> None:
    direct = cluster.environment["ONDOL_REDIS_URL"]
    cluster.environment["ONDOL_REDIS_URL"] = direct.replace(f":{redis.port}", f":{link.port}")
    cluster.start_worker(0, faults=[])
    cluster.environment["ONDOL_REDIS_URL"] = direct


def add_jobs(cluster: Cluster, num: int) -> list[str]:
    """Embedding jobs, written to SQL by somebody who dies before ringing; their ids."""
    project_id = cluster.database.write(lambda uow: uow.keys.ensure_project())
    version = cluster.database.read(lambda uow: uow.models.resolve(ModelRef("tiny"), project_id))
    jobs = [replace(new_job(project_id), version_id=version.id) for _ in range(num)]
    cluster.database.write(lambda uow: uow.jobs.add_all(jobs))
    return [job.id for job in jobs]


def ended_in_sql(cluster: Cluster, ids: list[str]) -> None:
    """Wait until all of them have succeeded."""

    def all_succeeded() -> bool:
        states = cluster.database.read(lambda uow: uow.jobs.states_of(ids))
        return all(str(state) == "succeeded" for state, _ in states.values())

    wait_until(all_succeeded, within_s=CURED_WITHIN_S, what="the jobs to succeed")


def repairs(cluster: Cluster) -> dict[str, int]:
    """All counters of repairs."""
    return cluster.database.read(lambda uow: uow.leaders.repair_counts())


def ready(cluster: Cluster) -> list[str]:
    """Devices whose worker is ready."""
    sessions = cluster.database.read(lambda uow: uow.sessions.open_sessions())
    return sorted(session.worker.partition("@")[0] for session in sessions if session.is_ready)
