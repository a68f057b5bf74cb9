"""A real reconciler purges with its default settings, beside a client that submits; nothing that waits is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from ondol.contract.states import JobState
from ondol.sql.tables import events, jobs, results
from tests.cluster import running_cluster
from tests.job_fixtures import submit
from tests.retention.aged import count, ended_jobs, sharded_job
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

LIMIT_S = 60


def test_the_reconciler_purges_under_load_what_is_over_its_time_and_nothing_else(
    tmp_path: Path, postgresql_url: str, empty_redis: RedisServer
) -> None:
    with running_cluster(tmp_path, database_url=postgresql_url, redis_url=empty_redis.url) as cluster:
        database = cluster.database
        ended_jobs(database, 300, days_ago=91)
        sharded_job(database, 40, days_ago=91)
        without_parts = ended_jobs(database, 300, days_ago=31)
        whole = ended_jobs(database, 5, days_ago=29)
        cluster.start_reconciler()
        waiting = []

        def is_purged() -> bool:
            waiting.extend(submit(database, 5))
            of_the_old = results.c.job_id.in_([job.id for job in without_parts])
            return count(database, jobs) == 305 + len(waiting) and count(database, results, of_the_old) == 0

        wait_until(is_purged, within_s=LIMIT_S, what="everything that is over its time to go")
        assert count(database, jobs, jobs.c.state == JobState.QUEUED) == len(waiting)
        assert count(database, events, events.c.job_id.in_([job.id for job in waiting])) == len(waiting)
        for table in (events, results):
            assert count(database, table, table.c.job_id.in_([job.id for job in whole])) >= len(whole)
        assert "purge.step" in cluster.log_of("reconciler")
