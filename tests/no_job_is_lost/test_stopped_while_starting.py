"""SIGTERM at any moment of a node's start: it ends well, leaves no lease and no process, and others have its work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from ondol.sql.tables import jobs, messages, sessions
from tests.cluster import Cluster, running_cluster
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.watchdogs.test_deaf_workers import add_jobs, ended_in_sql

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

LIMIT_S = 60
SIGTERM_BIT = 1 << 14
PATIENT = {"ONDOL_LEASE_S": "120", "ONDOL_TICK_S": "0.3"}
"""A lease that is left to lapse would be there when the test looks."""


def listens(cluster: Cluster, name: str) -> bool:
    """Whether the process handles SIGTERM: the first moment after the interpreter's own start."""
    status = Path(f"/proc/{cluster.processes[name].pid}/status").read_text(encoding="ascii")
    [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) & SIGTERM_BIT)


def has_child(cluster: Cluster, name: str) -> bool:
    """Whether the device process is being started."""
    return bool(psutil.Process(cluster.processes[name].pid).children())


def says(event: str) -> Callable[[Cluster, str], bool]:
    """Whether the process has written this event to its log."""
    return lambda cluster, name: event in cluster.log_of(name)


MOMENTS: dict[str, Callable[[Cluster, str], bool]] = {
    "its first line": listens,
    "its device process starts": has_child,
    "its session is open": says("session.opened"),
    "all but Celery is up": says("er.up"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_worker_that_is_stopped_while_it_starts_leaves_nothing(
    moment: str, tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=PATIENT) as cluster:
        cluster.publish(tiny_version, "tiny")
        cluster.start_reconciler()
        waiting = add_jobs(cluster, 3)
        name = cluster.start_worker(0, faults=[], waits=False)
        wait_until(lambda: MOMENTS[moment](cluster, name), within_s=LIMIT_S, what=moment)
        check_it_ends_well(cluster, name)
        cluster.start_worker(1, faults=[])
        ended_in_sql(cluster, waiting)


@pytest.mark.parametrize("moment", ["its first line", "its device process starts"])
def test_the_products_own_program_listens_too(
    moment: str, tmp_path: Path, sqlite_url: str, empty_redis: RedisServer
) -> None:
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=PATIENT) as cluster:
        name = cluster.start_worker(0, faults=None, waits=False)
        wait_until(lambda: MOMENTS[moment](cluster, name), within_s=LIMIT_S, what=moment)
        check_it_ends_well(cluster, name)


def test_a_worker_without_redis_is_stopped_at_once(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=PATIENT) as cluster:
        cluster.environment["ONDOL_REDIS_URL"] = "redis://127.0.0.1:9/0"  # nobody listens there
        name = cluster.start_worker(0, faults=[], waits=False)
        wait_until(lambda: says("worker.up")(cluster, name), within_s=LIMIT_S, what="the worker to look for Redis")
        check_it_ends_well(cluster, name)


@pytest.mark.parametrize("moment", ["its first line", "its session is open", "all but Celery is up"])
def test_a_trainer_node_that_is_stopped_while_it_starts_leaves_nothing(
    moment: str, tmp_path: Path, sqlite_url: str, empty_redis: RedisServer
) -> None:
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=PATIENT) as cluster:
        name = cluster.start_trainer(waits=False)
        wait_until(lambda: MOMENTS[moment](cluster, name), within_s=LIMIT_S, what=moment)
        check_it_ends_well(cluster, name)


def check_it_ends_well(cluster: Cluster, name: str) -> None:
    """SIGTERM: exit code 0, and no session, message or running job stays."""
    assert cluster.terminate(name) == 0, cluster.log_of(name)[-2000:]
    for what in (
        sa.select(sessions.c.id).where(sessions.c.ended_at.is_(None)),
        sa.select(messages.c.id),
        sa.select(jobs.c.id).where(sa.or_(jobs.c.state == "running", jobs.c.num_losses > 0, jobs.c.num_lapses > 0)),
    ):
        assert cluster.database.read(lambda uow, what=what: uow.conn.execute(what).scalars().all()) == []  # type: ignore[misc]  # bound at definition
