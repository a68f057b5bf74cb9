"""All is restarted in turn on a schema that a newer release has added to; an old worker leaves what it cannot read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from bench.rolling import restart
from bench.steady_load import SteadyLoad, ThroughSdk, fate_of
from ondol.client.sync_client import Ondol
from ondol.contract.errors import Conflict
from ondol.sql import migrate
from ondol.sql.tables import attempts
from tests.cluster import Cluster, running_cluster
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.integration, pytest.mark.timeout(240)]

LIMIT_S = 90
OLD_FIRST, OLD_LAST = 0, 7
RATES = {"job": 4.0, "batch": 1.0, "call": 5.0}
FAST = {"ONDOL_RUNG_UNCLAIMED_S": "1", "ONDOL_TICK_S": "0.3"}
NEXT_RELEASE = """
import sqlalchemy as sa
from alembic import op

from ondol.sql.index_building import NewIndex, build_indexes

revision, down_revision, branch_labels, depends_on = "9999", "{head}", None, None


def upgrade() -> None:
    build_indexes(NewIndex("ix_jobs_next_release", "jobs", ("kind", "id")))
    for table in ("jobs", "messages", "sessions", "attempts", "events", "results", "projects"):
        op.add_column(table, sa.Column("of_the_next_release", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("weight_of_the_next", sa.Double(), nullable=False, server_default="1"))
    op.create_table("next_release", sa.Column("id", sa.Text(), primary_key=True))
"""


@pytest.fixture
def upgrade_to_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Does to a database what `ondol db upgrade` of the next release will do."""
    folder = tmp_path / "migrations"
    shutil.copytree(Path(migrate.__file__).parent / "migrations", folder, ignore=shutil.ignore_patterns("__pycache__"))
    source = NEXT_RELEASE.format(head=migrate.newest())
    (folder / "versions" / "9999_next.py").write_text(source, encoding="utf-8")

    def upgrade(url: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(migrate, "_MIGRATIONS", folder)
            migrate.upgrade(url)

    return upgrade


def test_every_process_is_restarted_and_no_request_fails(
    tmp_path: Path,
    postgresql_url: str,
    empty_redis: RedisServer,
    tiny_version: Path,
    upgrade_to_next: Callable[[str], None],
) -> None:
    with running_cluster(tmp_path, database_url=postgresql_url, redis_url=empty_redis.url, settings=FAST) as cluster:
        cluster.publish(tiny_version, "tiny")
        cluster.start_api()
        cluster.start_reconciler()
        cluster.start_worker(0, faults=[])
        cluster.start_worker(1, faults=[], cores="1")
        with Ondol(cluster.url) as client, SteadyLoad(ThroughSdk(client, "tiny").senders(), RATES) as load:
            wait_for_good(load, 0.0)
            upgrade_to_next(postgresql_url)
            wait_for_good(load, load.now_s)
            for name in ("api", "worker0", "worker1", "reconciler"):
                restart(cluster, name)
            wait_for_good(load, load.now_s)
        assert [n for n in load.noted if not n.is_good] == []
        ids = load.accepted()
        wait_until(lambda: fate_of(cluster.database, ids).num_unfinished == 0, within_s=LIMIT_S, what="all jobs to end")
        fate = fate_of(cluster.database, ids)
        assert fate.states == {"succeeded": len(ids)}
        assert fate.num_lost_attempts == 0
        check_it_is_not_taken_back(postgresql_url)


def test_a_worker_that_does_not_know_a_message_leaves_it_to_others(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=FAST) as cluster:
        cluster.publish(tiny_version, "tiny")
        cluster.start_api()
        cluster.start_reconciler()
        old = start_old_worker(cluster)
        with Ondol(cluster.url) as client:
            job = client.jobs.create("embedding", input="one text", model="tiny")
            wait_until(
                lambda: "message.unknown_version" in cluster.log_of(old), within_s=LIMIT_S, what="the old worker's word"
            )
            assert job.refresh().status == "queued"
            cluster.start_worker(0, faults=[], cores="1")
            made = [job, *(client.jobs.create("embedding", input=f"text {i}", model="tiny") for i in range(20))]
            for each in made:
                assert each.wait(timeout_s=LIMIT_S).status == "succeeded"
                assert each.attempt == 1, "who leaves a message alone makes no attempt"
        workers = cluster.database.read(lambda uow: set(uow.conn.execute(sa.select(attempts.c.worker)).scalars()))
        assert {worker.partition("@")[0] for worker in workers} == {"cpu0"}


def start_old_worker(cluster: Cluster) -> str:
    """A worker of device cpu:7 that knows no version of today."""
    name, settings = "worker7", {"ONDOL_DEVICE": "cpu:7", "ONDOL_CORES": "0"}
    cluster._start(name, ["-m", "tests.outages.old_worker"], settings)
    cluster.wait_for_workers(1)
    return name


def wait_for_good(load: SteadyLoad, since_s: float) -> None:
    for what in RATES:
        wait_until(
            lambda what=what: load.good_since(since_s, what),  # type: ignore[misc]
            within_s=LIMIT_S,
            what=f"a good {what}",
        )


def check_it_is_not_taken_back(url: str) -> None:
    with pytest.raises(Conflict, match="newer one"):
        migrate.upgrade(url)
    assert migrate.current(url) == "9999"
