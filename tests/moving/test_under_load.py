"""Backups and moves while clients submit and a worker runs: what was accepted ends once, in the right database."""

from __future__ import annotations

from pathlib import Path

import pytest

from ondol.control.backup import back_up
from ondol.control.moving import move_database
from ondol.control.restoring import restore
from tests.cluster import Cluster, running_cluster
from tests.moving.load import check_each_has_one_effect, loaded, num_unfinished
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration]

LIMIT_S = 60
FAST = {"ONDOL_LEASE_S": "3", "ONDOL_RENEW_S": "0.8", "ONDOL_RUNG_UNCLAIMED_S": "2", "ONDOL_LEADER_LEASE_S": "2"}
SLOW_DEVICE = ["--delay-us-per-token", "3000"]


def start_all(cluster: Cluster) -> None:
    cluster.start_reconciler()
    cluster.start_worker(0, faults=SLOW_DEVICE)
    cluster.start_api()


def test_jobs_before_and_after_a_move_from_sqlite_to_postgresql_end_once(
    tmp_path: Path, sqlite_url: str, postgresql_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=FAST) as old:
        old.publish(tiny_version, "tiny")
        start_all(old)
        with loaded(old.url) as load:
            wait_until(lambda: len(load.accepted) >= 30, within_s=LIMIT_S, what="jobs to be accepted")
            done = move_database(sqlite_url, postgresql_url)
            before = len(load.accepted)
            refused = load.num_refused
            wait_until(lambda: load.num_refused > refused, within_s=LIMIT_S, what="the old database to refuse")
        assert len(load.accepted) - before <= 1, "one may have been answered while the move ended"
        assert {table.name: table.num_rows for table in done.tables}["jobs"] == len(load.accepted)
    ids = list(load.accepted)
    with running_cluster(tmp_path, database_url=postgresql_url, redis_url=empty_redis.url, settings=FAST) as new:
        start_all(new)
        with loaded(new.url) as load:
            wait_until(lambda: len(load.accepted) >= 10, within_s=LIMIT_S, what="jobs to be accepted")
        ids += load.accepted
        wait_until(lambda: num_unfinished(new.database, ids) == 0, within_s=LIMIT_S, what="every job to succeed")
        check_each_has_one_effect(new.database, ids)


def test_jobs_that_ran_when_a_backup_was_made_end_once_after_it_is_restored(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    file = tmp_path / "backup.db"
    restored_url = f"sqlite:///{tmp_path / 'restored.db'}"
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=FAST) as old:
        old.publish(tiny_version, "tiny")
        start_all(old)
        with loaded(old.url) as load:
            wait_until(lambda: len(load.accepted) >= 30, within_s=LIMIT_S, what="jobs to be accepted")
            before = list(load.accepted)
            back_up(sqlite_url, file)
            after = len(load.accepted)
            wait_until(lambda: len(load.accepted) > after, within_s=LIMIT_S, what="more jobs: nobody waited")
    done = restore(restored_url, file)
    assert done.num_handed_back > 0, "some ran when the backup was made"
    with running_cluster(tmp_path, database_url=restored_url, redis_url=empty_redis.url, settings=FAST) as new:
        new.start_reconciler()
        new.start_worker(0, faults=SLOW_DEVICE)
        wait_until(lambda: num_unfinished(new.database, before) == 0, within_s=LIMIT_S, what="every job to succeed")
        check_each_has_one_effect(new.database, before)
