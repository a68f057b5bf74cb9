"""A look at the whole system: right on both databases, answered by partial indexes, and not taken at every scrape."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry

from ondol.contract.states import Priority
from ondol.metrics.system import SystemMetrics
from ondol.sql.database import Database
from ondol.sql.measures import Measures, take_measures
from ondol.sql.tables import jobs
from tests.job_fixtures import (
    LIMITS,
    new_fine_tune,
    new_job,
    open_database,
    open_session,
    open_trainer,
    project_of,
    ring_and_claim,
    submit,
)

pytestmark = pytest.mark.integration


def test_a_look_finds_what_waits_runs_and_was_repaired(database: Database) -> None:
    session_id = open_session(database)
    open_trainer(database)
    submit(database, 2, priority=Priority.INTERACTIVE)
    assert len(ring_and_claim(database, session_id)) == 2
    submit(database, 3)
    project_id = project_of(database)
    database.write(
        lambda uow: uow.jobs.add_all([new_fine_tune(project_id), new_job(project_id, priority=Priority.BULK)])
    )
    aged = sa.update(jobs).where(jobs.c.priority == Priority.NORMAL, jobs.c.kind == "embedding")
    database.write(lambda uow: uow.conn.execute(aged.values(run_after=jobs.c.run_after - 100.0)).rowcount)
    database.write(lambda uow: uow.leaders.count_repairs("message_lost", 7))
    found = database.read(take_measures)
    assert found.num_queued == {"interactive": 0, "normal": 3, "bulk": 1, "fine-tune": 1}
    assert 100 <= found.oldest_s["normal"] < 160 and found.oldest_s["bulk"] < 60 and found.oldest_s["interactive"] == 0
    assert {kind: num for kind, num in found.num_running.items() if num} == {"embedding": 2}
    assert found.num_ready_workers == {"infer": 1, "train": 1}
    assert found.repairs["message_lost"] == 7 and found.repairs["session_lapsed"] == 0
    assert found.num_notices == {"webhook": 0, "celery": 0}


def test_what_is_rung_still_waits_and_what_is_due_later_does_not(database: Database) -> None:
    open_session(database)
    [now, later] = submit(database, 2)
    put_off = sa.update(jobs).where(jobs.c.id == later.id).values(run_after=jobs.c.run_after + 3600)
    database.write(lambda uow: uow.conn.execute(put_off).rowcount)
    [message] = database.write(lambda uow: uow.ringing.choose(LIMITS))
    assert [job_id for job_id, _ in message.jobs] == [now.id]
    found = database.read(take_measures)
    assert found.num_queued["normal"] == 2 and 0 <= found.oldest_s["normal"] < 60


def test_scrapes_in_a_row_look_once_and_a_gap_is_no_zero(sqlite_url: str) -> None:
    database = open_database(sqlite_url)
    looks: list[Measures] = []

    def look() -> Measures:
        looks.append(database.read(take_measures))
        return looks[-1]

    registry, silent = CollectorRegistry(), CollectorRegistry()
    SystemMetrics(registry, look)
    SystemMetrics(silent, lambda: None)
    for _ in range(5):
        assert registry.get_sample_value("ondol_queue_jobs", {"queue": "bulk"}) == 0
    assert len(looks) == 1
    assert silent.get_sample_value("ondol_queue_jobs", {"queue": "bulk"}) is None
    database.close()
