"""A job that is deleted is gone for whoever changes it at the same time: nothing of it runs."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from ondol.contract.errors import JobNotFound
from ondol.sql.database import Database
from ondol.sql.records import JobRecord
from ondol.sql.tables import jobs
from tests.job_fixtures import submit
from tests.servers import ON_POSTGRESQL
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, ON_POSTGRESQL]

LIMIT_S = 20
WAITING = sa.text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


def test_a_retry_in_the_middle_of_a_delete_waits_and_finds_no_job(database: Database, other_database: Database) -> None:
    [job] = submit(database, 1)
    database.write(lambda uow: uow.conn.execute(sa.update(jobs).values(state="failed", finished_at=1.0)))
    retries: list[Future[JobRecord]] = []

    @event.listens_for(database._write_engine, "before_cursor_execute")
    def begin_retry(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if "DELETE FROM events" in statement and not retries:
            retries.append(other_database.submit(lambda uow: uow.jobs.retry(job.id, job.project_id)))
            wait_until(
                lambda: (
                    retries[0].done() or other_database.read(lambda uow: uow.conn.execute(WAITING).scalar_one()) == 1
                ),
                within_s=LIMIT_S,
                what="the retry to wait for the delete",
            )

    database.write(lambda uow: uow.jobs.delete(job.id, job.project_id))
    with pytest.raises(JobNotFound):
        retries[0].result(LIMIT_S)
    assert database.read(lambda uow: uow.conn.execute(sa.select(jobs.c.id)).all()) == []
