"""The reconciler repairs whatever was lost, and only one leads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from ondol.broker.publisher import Publisher
from ondol.broker.wake import WakeBus
from ondol.contract.states import JobState
from ondol.control.reconciler import CANARY_KEY, LEADER, Reconciler, ReconcilerLimits
from ondol.control.ringer import Ringer
from ondol.sql.database import Database
from ondol.sql.records import ClaimedJob
from ondol.sql.tables import jobs, leaders, messages, sessions
from tests.job_fixtures import LIMITS, completions, open_session, ring_and_claim, submit
from tests.servers import RedisServer

pytestmark = pytest.mark.integration

PATIENT = ReconcilerLimits(rung_unclaimed_s=600, leader_lease_s=600)
AT_ONCE = ReconcilerLimits(rung_unclaimed_s=0.0, leader_lease_s=600)


@contextmanager
def _reconciler(database: Database, redis: RedisServer, limits: ReconcilerLimits) -> Iterator[Reconciler]:
    ringer, wake = Ringer(database, Publisher(redis.url), LIMITS), WakeBus(redis.url)
    reconciler = Reconciler(database=database, redis_url=redis.url, ringer=ringer, wake=wake, limits=limits)
    try:
        yield reconciler
    finally:
        reconciler.close()
        ringer.close()
        wake.close()


def test_waiting_jobs_are_rung(database: Database, empty_redis: RedisServer) -> None:
    submit(database, 3)
    open_session(database)
    with _reconciler(database, empty_redis, PATIENT) as reconciler, empty_redis.client() as client:
        assert reconciler.tick()
        assert client.llen("ondol.cpu0@test.normal") == 1


def test_a_message_that_nobody_claimed_is_rung_again(database: Database, empty_redis: RedisServer) -> None:
    submit(database, 1)
    open_session(database)
    with _reconciler(database, empty_redis, AT_ONCE) as reconciler, empty_redis.client() as client:
        reconciler.tick()
        client.set(CANARY_KEY, "here")
        client.delete("ondol.cpu0@test.normal")
        reconciler.tick()
        assert client.llen("ondol.cpu0@test.normal") == 1
        assert _repairs(database).get("message_lost") == 1


def test_when_redis_lost_its_data_everything_unclaimed_is_rung_again(
    database: Database, empty_redis: RedisServer
) -> None:
    submit(database, 70)
    session_id = open_session(database)
    with _reconciler(database, empty_redis, PATIENT) as reconciler, empty_redis.client() as client:
        reconciler.tick()
        assert client.exists(CANARY_KEY)
        running = _claim_one(database, session_id)
        reconciler.tick()
        assert _repairs(database) == {}, "the canary is there: nothing is rung twice"
        empty_redis.flush()
        reconciler.tick()
        assert client.exists(CANARY_KEY)
        assert client.llen("ondol.cpu0@test.normal") == 1
        assert _repairs(database) == {"redis_data_lost": 1}
        assert len(database.write(lambda uow: uow.attempts.complete(completions(running)))) == len(running)


def test_a_lapsed_session_is_ended_and_its_jobs_are_queued_again(database: Database, empty_redis: RedisServer) -> None:
    submitted = submit(database, 5)
    session_id = open_session(database)
    ring_and_claim(database, session_id)
    _set_lease(database, session_id, expires_at=1.0)
    with _reconciler(database, empty_redis, PATIENT) as reconciler:
        reconciler.tick()
    states = database.read(lambda uow: uow.jobs.states_of([job.id for job in submitted]))
    assert {state for state, _ in states.values()} == {JobState.QUEUED}
    assert _count(database, messages) == 0
    assert _repairs(database)["job_taken_back"] == 5


def test_jobs_that_run_under_an_ended_session_are_taken_back(database: Database, empty_redis: RedisServer) -> None:
    job = submit(database, 1)[0]
    session_id = open_session(database)
    ring_and_claim(database, session_id)
    database.write(lambda uow: uow.sessions.end(session_id, reason="stopped"))
    with _reconciler(database, empty_redis, PATIENT) as reconciler:
        reconciler.tick()
    assert database.read(lambda uow: uow.jobs.states_of([job.id]))[job.id][0] is JobState.QUEUED


def test_a_second_reconciler_does_not_lead(database: Database, empty_redis: RedisServer) -> None:
    with (
        _reconciler(database, empty_redis, PATIENT) as first,
        _reconciler(database, empty_redis, PATIENT) as second,
    ):
        assert first.tick()
        assert not second.tick()
        first.close()
        assert second.tick(), "who resigns need not be waited for"


def test_a_paused_leader_that_wakes_repairs_nothing(database: Database, empty_redis: RedisServer) -> None:
    submit(database, 1)
    session_id = open_session(database)
    with _reconciler(database, empty_redis, PATIENT) as paused:
        assert paused.tick()
        term = _term(database)
        database.write(lambda uow: uow.leaders.resign(LEADER, holder=paused._holder))
        assert database.write(lambda uow: uow.leaders.lead(LEADER, holder="another", lease_s=600))
        _set_lease(database, session_id, expires_at=1.0)
        asked_at = time.monotonic()
        assert database.write(lambda uow: paused._repair(uow, has_lost_messages=True, asked_at=asked_at)) == []
        assert not paused.tick()
        assert _term(database) == term + 1
        assert _count(database, sessions.select().where(sessions.c.ended_at.is_not(None)).subquery()) == 0


def test_a_missed_deadline_fails_a_waiting_job(database: Database, empty_redis: RedisServer) -> None:
    job = submit(database, 1)[0]
    database.write(lambda uow: uow.conn.execute(sa.update(jobs).values(deadline_at=1.0)))
    with _reconciler(database, empty_redis, PATIENT) as reconciler:
        reconciler.tick()
    found = database.read(lambda uow: uow.jobs.get(job.id, job.project_id))
    assert found.state is JobState.FAILED
    assert found.error is not None and found.error["code"] == "deadline_exceeded"


def _claim_one(database: Database, session_id: str) -> list[ClaimedJob]:
    message_id = database.read(
        lambda uow: uow.conn.execute(sa.select(messages.c.id).order_by(messages.c.num_jobs.desc())).scalars().first()
    )
    return list(
        database.write(lambda uow: uow.attempts.claim(str(message_id), session_id=session_id, worker="cpu0@test"))
    )


def _set_lease(database: Database, session_id: str, *, expires_at: float) -> None:
    database.write(
        lambda uow: uow.conn.execute(
            sa.update(sessions).where(sessions.c.id == session_id).values(expires_at=expires_at)
        )
    )


def _repairs(database: Database) -> dict[str, int]:
    return database.read(lambda uow: uow.leaders.repair_counts())


def _count(database: Database, table: sa.FromClause) -> int:
    return database.read(lambda uow: int(uow.conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()))


def _term(database: Database) -> int:
    return database.read(lambda uow: int(uow.conn.execute(sa.select(leaders.c.term)).scalar_one()))
