"""A commit whose answer is lost, and servers that go away: no claim is stuck, no caller is left waiting."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace
from typing import cast

import pytest
import sqlalchemy as sa

from api.database import AsyncDatabase
from api.errors import error_response
from api.idempotency import Answer, KeyedRequest, Make, answer_once
from api.services import Services
from ondol.contract.errors import DatabaseUnavailable
from ondol.contract.states import JobState
from ondol.sql.database import Database
from ondol.sql.tables import attempts, jobs, messages
from ondol.sql.unit_of_work import UnitOfWork
from tests.job_fixtures import LIMITS, completions, new_job, open_database, open_session, submit
from tests.servers import ON_POSTGRESQL
from tests.torn_postgres import TornPostgres
from tests.waiting import wait_until
from workers.claims import ClaimAudit, Claims
from workers.session import SessionKeeper, WorkerIdentity

pytestmark = [pytest.mark.integration, ON_POSTGRESQL]

WORKER = "cpu0@test"


def test_a_claim_whose_answer_was_lost_is_found_again(database: Database, far: Database, link: TornPostgres) -> None:
    submit(database, 3)
    session_id = open_session(database)
    message = database.write(lambda uow: uow.ringing.choose(LIMITS))[0]
    link.tear()
    claimed = far.write(lambda uow: uow.attempts.claim(message.id, session_id=session_id, worker=WORKER))
    assert link.num_torn == 1
    assert [job.attempt for job in claimed] == [1, 1, 1] and all(job.payload for job in claimed)
    assert _count(database, attempts) == 3
    assert len(database.write(lambda uow: uow.attempts.complete(completions(claimed)))) == 3


def test_a_claim_that_its_worker_never_learns_of_is_handed_back(
    database: Database, far: Database, link: TornPostgres
) -> None:
    job = submit(database, 1)[0]
    session = _session_keeper(database)
    session.start()
    try:
        wait_until(session.current, within_s=10, what="a session")
        session_id = session.current()
        assert session_id is not None
        message = wait_until(
            lambda: database.write(lambda uow: uow.ringing.choose(LIMITS)), within_s=10, what="a message"
        )[0]
        link.tear(then_refuse=True)
        with pytest.raises(DatabaseUnavailable):
            far.write(lambda uow: uow.attempts.claim(message.id, session_id=session_id, worker=WORKER))
        assert _state(database, job.id) is JobState.RUNNING
        audit = ClaimAudit(database, session, Claims())
        audit.look()
        assert _state(database, job.id) is JobState.RUNNING, "one look may have come between commit and answer"
        audit.look()
        assert _state(database, job.id) is JobState.QUEUED
        assert _count(database, messages) == 0, "its place in the window is free again"
    finally:
        session.end(reason="stopped")


def test_a_submission_that_may_be_done_is_not_to_be_made_again_without_a_key(
    database: Database, far: Database, link: TornPostgres
) -> None:
    project_id = database.write(lambda uow: uow.keys.ensure_project())
    services = cast(Services, SimpleNamespace(database=AsyncDatabase(far)))

    async def prepare(_held: ExitStack) -> Make:
        job = new_job(project_id)
        return lambda uow: Answer(202, uow.jobs.add_all([job])[0].id.encode())

    for keyed in (None, KeyedRequest(project_id, "key", "digest")):
        before = _count(database, jobs)
        link.tear(then_refuse=True)
        with pytest.raises(DatabaseUnavailable) as caught:
            asyncio.run(answer_once(services, keyed, prepare))
        assert caught.value.may_be_done and _count(database, jobs) == before + 1
        headers = error_response(caught.value).headers
        assert headers["x-should-retry"] == ("false" if keyed is None else "true")
        link.let_in()
        assert far.write(lambda uow: uow.now) > 0


def test_a_write_that_never_came_to_its_commit_is_surely_not_done(far: Database, link: TornPostgres) -> None:
    def lose_the_link(uow: UnitOfWork) -> None:
        link.tear(then_refuse=True)
        uow.conn.exec_driver_sql("SELECT 'COMMIT'")

    with pytest.raises(DatabaseUnavailable) as caught:
        far.write(lose_the_link)
    assert not caught.value.may_be_done


def test_each_caller_of_a_group_has_an_error_of_its_own(far: Database, link: TornPostgres) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def hold(uow: UnitOfWork) -> None:
        begun.set()
        assert may_end.wait(30)

    first = far.submit(hold)
    assert begun.wait(10)
    together = [far.submit(lambda uow: uow.now) for _ in range(3)]
    link.tear(then_refuse=True)
    may_end.set()
    assert first.exception(30) is None, "it asked for nothing, so there was nothing to commit"
    errors = [cast(DatabaseUnavailable, future.exception(30)) for future in together]
    assert [error.may_be_done for error in errors] == [True, True, True]
    assert len(set(map(id, errors))) == len(errors)


def test_the_pool_recovers_when_the_server_ends_all_connections(database: Database) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: database.ping(), range(8)))
    database.write(lambda uow: uow.conn.execute(sa.text("SELECT 1")))
    for _ in range(3):
        _end_connections(database)
        database.ping()
        assert len(submit(database, 1)) == 1


def test_a_connection_that_dies_inside_a_transaction_is_tried_again(database: Database) -> None:
    tries: list[bool] = []

    def work(uow: UnitOfWork) -> int:
        tries.append(uow.is_retry)
        uow.conn.execute(sa.text("SELECT 1"))
        if not uow.is_retry:
            _end_connections(database)
        return int(uow.conn.execute(sa.text("SELECT 7")).scalar_one())

    assert database.write(work) == 7
    assert tries == [False, True]


def test_a_process_frozen_inside_a_transaction_does_not_hold_its_locks_for_ever(database: Database) -> None:
    session_id = open_session(database)
    frozen, begun, thawed = Database(database.url), threading.Event(), threading.Event()

    def freeze(uow: UnitOfWork) -> bool:
        kept = uow.sessions.renew(session_id, lease_s=6, is_ready=True, warm=[])
        if not begun.is_set():
            begun.set()
            assert thawed.wait(30)
        return kept

    answer = frozen.submit(freeze)
    assert begun.wait(10)
    database.write(lambda uow: uow.sessions.end(session_id, reason="lapsed"))
    assert database.read(lambda uow: uow.sessions.open_sessions()) == []
    thawed.set()
    assert answer.result(30) is False, "the frozen transaction was rolled back, and its second try found the end"
    frozen.close()


def test_a_closed_database_refuses_and_leaves_nobody_waiting(tmp_path: os.PathLike[str]) -> None:
    database = open_database(f"sqlite:///{os.fspath(tmp_path)}/x.db")
    start = threading.Barrier(5)

    def write() -> str:
        start.wait()
        outcome = "written"
        for _ in range(50):
            try:
                database.write(lambda uow: uow.conn.execute(sa.text("SELECT 1")).scalar())
            except DatabaseUnavailable:
                outcome = "refused"
        return outcome

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(write) for _ in range(4)]
        start.wait()
        database.close()
        assert {answer.result(30) for answer in answers} <= {"written", "refused"}
    with pytest.raises(DatabaseUnavailable):
        database.write(lambda uow: uow.now)


def _session_keeper(database: Database) -> SessionKeeper:
    return SessionKeeper(
        database,
        WorkerIdentity(WORKER, "cpu:0", "cpu", "test", os.getpid()),
        lease_s=60,
        renew_s=1,
        is_ready=lambda: True,
        warm=list,
        on_lost=lambda: None,
    )


def _end_connections(database: Database) -> None:
    other = sa.create_engine(database.url, poolclass=sa.NullPool)
    mine = "datname = current_database() AND pid <> pg_backend_pid()"
    with other.connect() as conn:
        conn.execute(sa.text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {mine}"))


def _state(database: Database, job_id: str) -> JobState:
    return database.read(lambda uow: uow.jobs.states_of([job_id]))[job_id][0]


def _count(database: Database, table: sa.Table) -> int:
    return database.read(lambda uow: int(uow.conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()))
