"""On PostgreSQL, whoever ends a session and whoever repairs its work lock in one order, and never wait in a circle."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from ondol.broker.publisher import Publisher
from ondol.broker.wake import WakeBus
from ondol.contract.states import JobState
from ondol.control.reconciler import CANARY_KEY, Reconciler, ReconcilerLimits
from ondol.control.ringer import Ringer
from ondol.sql.database import Database
from ondol.sql.tables import jobs, sessions
from ondol.sql.unit_of_work import UnitOfWork
from tests.job_fixtures import LIMITS, open_session, ring_and_claim, submit
from tests.servers import ON_POSTGRESQL, RedisServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, ON_POSTGRESQL]

WORKER = "cpu0@test"
LIMIT_S = 20
NUM_BLOCKED = sa.text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


def _meet(
    database: Database, first: Callable[[UnitOfWork], Any], second: Callable[[], Any], then: Callable[[UnitOfWork], Any]
) -> Any:
    """What `then` finds: it runs in the transaction of `first`, once `second`, beside it, waits for a lock."""
    has_begun = threading.Event()

    def work(uow: UnitOfWork) -> Any:
        first(uow)
        has_begun.set()
        wait_until(lambda: _is_anybody_blocked(database), within_s=LIMIT_S, what="the other one to wait for a lock")
        return then(uow)

    with ThreadPoolExecutor(1) as pool:
        found = database.submit(work)
        assert has_begun.wait(LIMIT_S)
        beside = pool.submit(second)
        answer = found.result(LIMIT_S)
        beside.result(LIMIT_S)
    return answer


def _is_anybody_blocked(database: Database) -> bool:
    return bool(database.read(lambda uow: uow.conn.execute(NUM_BLOCKED).scalar_one()))


def test_a_worker_stops_while_its_messages_are_recalled(
    database: Database, other_database: Database, deadlocks: list[str]
) -> None:
    session_id = open_session(database)
    submit(database, 1)
    assert len(database.write(lambda uow: uow.ringing.choose(LIMITS))) == 1
    recalled = _meet(
        database,
        lambda uow: uow.sessions.note_silence(WORKER),
        lambda: other_database.write(lambda uow: uow.sessions.stop(session_id, reason="stopped")),
        lambda uow: uow.ringing.recall_unclaimed(rung_before=uow.now),
    )
    assert (recalled, deadlocks) == (1, [])


def test_a_worker_starts_again_while_its_old_session_lapses(
    database: Database, other_database: Database, deadlocks: list[str]
) -> None:
    session_id = open_session(database)
    [job] = submit(database, 1)
    assert len(ring_and_claim(database, session_id)) == 1
    over = sa.update(sessions).where(sessions.c.id == session_id).values(expires_at=1.0)
    database.write(lambda uow: uow.conn.execute(over))
    taken = _meet(
        database,
        lambda uow: uow.sessions.lapse(),
        lambda: open_session(other_database),
        lambda uow: uow.attempts.take_back(session_id),
    )
    assert (taken, deadlocks) == ([job.id], [])


def test_a_message_is_claimed_while_its_job_becomes_late(
    database: Database, other_database: Database, empty_redis: RedisServer, deadlocks: list[str]
) -> None:
    session_id = open_session(database)
    [job] = submit(database, 1)
    [message] = database.write(lambda uow: uow.ringing.choose(LIMITS))
    database.write(lambda uow: uow.conn.execute(sa.update(jobs).values(deadline_at=1.0)))
    with empty_redis.client() as client:
        client.set(CANARY_KEY, "here")
    ringer, wake = Ringer(database, Publisher(empty_redis.url), LIMITS), WakeBus(empty_redis.url)
    limits = ReconcilerLimits(rung_unclaimed_s=0.0, leader_lease_s=600)
    reconciler = Reconciler(database=database, redis_url=empty_redis.url, ringer=ringer, wake=wake, limits=limits)
    try:
        claimed = _meet(
            other_database,
            lambda uow: uow.sessions.hold(session_id),
            reconciler.tick,
            lambda uow: uow.attempts.claim(message.id, session_id=session_id, worker=WORKER),
        )
    finally:
        reconciler.close()
        ringer.close()
        wake.close()
    assert (claimed, deadlocks) == ([], [])
    assert database.read(lambda uow: uow.jobs.states_of([job.id]))[job.id][0] is JobState.FAILED
