"""Every unit of work may run again after a commit whose answer was lost, and has its effect once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from ondol.broker.wake import WakeBus
from ondol.contract.errors import StaleAttempt
from ondol.contract.states import JobState
from ondol.sql.database import Database
from ondol.sql.records import Failure
from ondol.sql.tables import attempts, events, idempotency_keys, jobs, results, sessions, versions
from ondol.sql.unit_of_work import UnitOfWork
from tests.job_fixtures import (
    LIMITS,
    completions,
    new_fine_tune,
    new_job,
    open_database,
    open_session,
    open_trainer,
    project_of,
    ring_and_claim,
    ring_and_claim_training,
    submit,
)
from tests.servers import RedisServer
from tests.torn_postgres import TornPostgres, torn_postgres
from workers.training.reporting import Reporter

pytestmark = pytest.mark.integration


@pytest.fixture
def database(postgresql_url: str) -> Iterator[Database]:
    opened = open_database(postgresql_url)
    yield opened
    opened.close()


@pytest.fixture
def link(database: Database) -> Iterator[TornPostgres]:
    with torn_postgres(database.url) as torn:
        yield torn
        assert torn.num_torn == 1, "the test lost the answer to one commit"


@pytest.fixture
def far(link: TornPostgres) -> Iterator[Database]:
    """The database through the link that tears."""
    opened = Database(link.url)
    assert opened.write(lambda uow: uow.now) > 0, "connected: what tears is the commit of the test"
    yield opened
    opened.close()


def test_submitting(database: Database, far: Database, link: TornPostgres) -> None:
    new = [new_job(project_of(database)) for _ in range(5)]
    link.tear()
    far.write(lambda uow: uow.jobs.add_all(new))
    assert (_count(database, jobs), _count(database, events)) == (5, 5)


def test_completing(database: Database, far: Database, link: TornPostgres) -> None:
    job = submit(database, 1)[0]
    claimed = ring_and_claim(database, open_session(database))
    link.tear()
    far.write(lambda uow: uow.attempts.complete(completions(claimed)))
    assert _state(database, job.id) is JobState.SUCCEEDED
    assert (_count(database, results), _count(database, events)) == (1, 3)


def test_a_retryable_failure_is_counted_once(database: Database, far: Database, link: TornPostgres) -> None:
    submit(database, 1)
    claimed = ring_and_claim(database, open_session(database))
    failure = Failure(claimed[0].id, 1, {"code": "x", "message": "y", "param": None}, retry_after_s=0.0)
    link.tear()
    far.write(lambda uow: uow.attempts.fail([failure], max_retries=3))
    row = database.read(lambda uow: uow.conn.execute(sa.select(jobs.c.num_retries, jobs.c.state)).one())
    assert tuple(row) == (1, "queued")


def test_handing_back_and_taking_back(database: Database, far: Database, link: TornPostgres) -> None:
    submit(database, 4)
    session_id = open_session(database)
    ring_and_claim(database, session_id)
    link.tear()
    far.write(lambda uow: uow.attempts.take_back(session_id))
    counted = database.read(lambda uow: uow.conn.execute(sa.select(jobs.c.num_lapses)).scalars().all())
    assert list(counted) == [1, 1, 1, 1]


def test_an_idempotency_key_is_answered_once(database: Database, far: Database, link: TornPostgres) -> None:
    project_id = project_of(database)
    job = new_job(project_id)

    def accept(uow: UnitOfWork) -> tuple[int, bytes] | None:
        found = uow.idempotency.find(project_id, "key", "digest")
        if found is not None:
            return found
        assert uow.idempotency.reserve(project_id, "key", "digest")
        uow.jobs.add_all([job])
        uow.idempotency.answer(project_id, "key", status=202, answer=job.id.encode())
        return 202, job.id.encode()

    link.tear()
    assert far.write(accept) == (202, job.id.encode())
    assert (_count(database, jobs), _count(database, idempotency_keys)) == (1, 1)


def test_opening_a_session_leaves_one_open(database: Database, far: Database, link: TornPostgres) -> None:
    link.tear()
    session_id = open_session(far)
    still_open = sa.select(sessions.c.id).where(sessions.c.ended_at.is_(None))
    assert database.read(lambda uow: uow.conn.execute(still_open).scalars().all()) == [session_id]


def test_publishing_makes_one_version(database: Database, far: Database, link: TornPostgres) -> None:
    job = submit(database, 1)[0]
    claimed = ring_and_claim(database, open_session(database))

    def publish(uow: UnitOfWork) -> str:
        version = uow.models.publish(
            project_id=job.project_id,
            name="tiny",
            task="embedding",
            manifest_digest="0" * 64,
            size_bytes=1,
            spec={},
            job_id=job.id,
            attempt=1,
            lineage={},
        ).version
        if not uow.attempts.complete(completions(claimed)):
            raise StaleAttempt("overtaken")
        return version.ref

    link.tear()
    with pytest.raises(StaleAttempt):
        far.write(publish)
    assert _count(database, versions) == 1
    assert _state(database, job.id) is JobState.SUCCEEDED


def test_choosing_names_each_job_in_one_message(database: Database, far: Database, link: TornPostgres) -> None:
    submit(database, 100)
    open_session(database)
    link.tear()
    far.write(lambda uow: uow.ringing.choose(LIMITS))
    rung = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.message_id.is_not(None))
    assert database.read(lambda uow: uow.conn.execute(rung).scalar_one()) == 100
    assert _count(database, attempts) == 0


def test_what_a_training_reports_is_told_once(
    database: Database, far: Database, link: TornPostgres, redis_server: RedisServer
) -> None:
    fine_tune = new_fine_tune(project_of(database))
    database.write(lambda uow: uow.jobs.add_all([fine_tune]))
    [job] = ring_and_claim_training(database, open_trainer(database))
    wake = WakeBus(redis_server.url)
    reporter = Reporter(far, wake, job)
    link.tear()
    reporter.say("training begins")
    reporter.say("training goes on")
    wake.close()
    told = database.read(lambda uow: uow.events.after(job.id, 0))
    assert [e.data["message"] for e in told if e.type == "message"] == ["training begins", "training goes on"]


def _count(database: Database, table: sa.Table) -> int:
    return database.read(lambda uow: int(uow.conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()))


def _state(database: Database, job_id: str) -> JobState:
    return database.read(lambda uow: uow.jobs.states_of([job_id]))[job_id][0]
