"""Whatever overtakes whatever, a job ends once and keeps the result of the attempt that ended it."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from ondol.contract.errors import IllegalTransition
from ondol.contract.states import JobState
from ondol.sql.database import Database
from ondol.sql.records import Failure
from ondol.sql.tables import attempts, events, jobs, messages, results
from tests.job_fixtures import (
    LIMITS,
    completions,
    new_job,
    open_session,
    project_of,
    ring_and_claim,
    submit,
)

pytestmark = pytest.mark.integration


def test_a_claimed_job_is_completed_once_with_its_result_and_events(database: Database) -> None:
    job = submit(database, 1)[0]
    claimed = ring_and_claim(database, open_session(database))
    assert database.write(lambda uow: uow.attempts.complete(completions(claimed))) == [job.id]
    assert database.write(lambda uow: uow.attempts.complete(completions(claimed))) == []

    found = database.read(lambda uow: uow.jobs.get(job.id, job.project_id))
    assert (found.state, found.attempt, found.num_done) == (JobState.SUCCEEDED, 1, 1)
    told = [e.data["to"] for e in database.read(lambda uow: uow.events.after(job.id, 0))]
    assert told == ["queued", "running", "succeeded"]


def test_a_zombie_cannot_write_after_its_session_lapsed(database: Database) -> None:
    job = submit(database, 1)[0]
    zombie = open_session(database)
    old = ring_and_claim(database, zombie)
    assert database.write(lambda uow: uow.attempts.take_back(zombie)) == [job.id]
    database.write(lambda uow: uow.sessions.end(zombie, reason="lapsed"))
    new = ring_and_claim(database, open_session(database, "cpu1@test"), "cpu1@test")
    assert [c.attempt for c in new] == [2]

    assert database.write(lambda uow: uow.attempts.complete(completions(old))) == []
    assert database.write(lambda uow: uow.attempts.hand_back([(job.id, 1)])) == []
    failure = Failure(job.id, 1, {"code": "x", "message": "y", "param": None})
    assert database.write(lambda uow: uow.attempts.fail([failure], max_retries=3)) == []
    assert database.write(lambda uow: uow.attempts.complete(completions(new))) == [job.id]
    kept = database.read(lambda uow: uow.results.get(job.id))
    assert kept is not None and kept.attempt == 2


def test_a_cancelled_job_never_succeeds(database: Database) -> None:
    job = submit(database, 1)[0]
    claimed = ring_and_claim(database, open_session(database))
    database.write(lambda uow: uow.jobs.cancel(job.id, job.project_id))
    assert database.write(lambda uow: uow.attempts.complete(completions(claimed))) == []
    assert database.read(lambda uow: uow.jobs.get(job.id, job.project_id)).state is JobState.CANCELLED
    again = database.write(lambda uow: uow.jobs.cancel(job.id, job.project_id))
    assert again.state is JobState.CANCELLED


def test_a_finished_job_cannot_be_cancelled(database: Database) -> None:
    job = submit(database, 1)[0]
    claimed = ring_and_claim(database, open_session(database))
    database.write(lambda uow: uow.attempts.complete(completions(claimed)))
    with pytest.raises(IllegalTransition, match="succeeded"):
        database.write(lambda uow: uow.jobs.cancel(job.id, job.project_id))


def test_cancel_racing_with_success_leaves_one_terminal_state(database: Database) -> None:
    jobs = submit(database, 40)
    claimed = ring_and_claim(database, open_session(database))
    start = threading.Barrier(2)

    def cancel_all() -> int:
        start.wait()
        cancelled = 0
        for job in jobs:
            try:
                database.write(lambda uow, j=job: uow.jobs.cancel(j.id, j.project_id))  # type: ignore[misc]  # bound at definition
                cancelled += 1
            except IllegalTransition:
                continue
        return cancelled

    def complete_all() -> int:
        start.wait()
        return sum(
            len(database.write(lambda uow, c=one: uow.attempts.complete(completions([c]))))  # type: ignore[misc]  # bound at definition
            for one in claimed
        )

    with ThreadPoolExecutor(2) as pool:
        cancelled, completed = pool.submit(cancel_all), pool.submit(complete_all)
    assert cancelled.result() + completed.result() == 40
    terminal = sa.select(sa.func.count()).where(events.c.seq == 3).select_from(events)
    assert database.read(lambda uow: uow.conn.execute(terminal).scalar_one()) == 40
    assert database.read(
        lambda uow: uow.conn.execute(sa.select(sa.func.count()).select_from(results)).scalar_one()
    ) == (completed.result())


def test_concurrent_claims_of_one_message_give_each_job_to_one_claimer(database: Database) -> None:
    submit(database, 30)
    session_id = open_session(database)
    message = database.write(lambda uow: uow.ringing.choose(LIMITS))[0]
    others = [Database(database.url) for _ in range(3)]
    start = threading.Barrier(3)

    def claim(other: Database) -> list[str]:
        start.wait()
        found = other.write(lambda uow: uow.attempts.claim(message.id, session_id=session_id, worker="cpu0@test"))
        return [job.id for job in found]

    with ThreadPoolExecutor(3) as pool:
        claimed = [job_id for ids in pool.map(claim, others) for job_id in ids]
    for other in others:
        other.close()
    assert len(claimed) == len(set(claimed)) == 30
    rows = sa.select(sa.func.count()).select_from(attempts)
    assert database.read(lambda uow: uow.conn.execute(rows).scalar_one()) == 30


def test_a_job_whose_worker_dies_three_times_alone_fails_with_worker_lost(database: Database) -> None:
    job = submit(database, 1)[0]
    for lapse in range(6):
        worker = f"cpu{lapse}@test"
        session_id = open_session(database, worker)
        claimed = ring_and_claim(database, session_id, worker)
        assert [c.is_alone for c in claimed] == [lapse >= 3]
        database.write(lambda uow, s=session_id: uow.attempts.take_back(s))  # type: ignore[misc]  # bound at definition
        database.write(lambda uow, s=session_id: uow.sessions.end(s, reason="lapsed"))  # type: ignore[misc]  # bound at definition
    found = database.read(lambda uow: uow.jobs.get(job.id, job.project_id))
    assert found.state is JobState.FAILED
    assert found.error is not None and found.error["code"] == "worker_lost"


def test_a_failed_job_is_retried_with_its_history_kept(database: Database) -> None:
    job = submit(database, 1)[0]
    session_id = open_session(database)
    claimed = ring_and_claim(database, session_id)
    failure = Failure(job.id, claimed[0].attempt, {"code": "device_error", "message": "no", "param": None})
    database.write(lambda uow: uow.attempts.fail([failure], max_retries=3))
    with pytest.raises(IllegalTransition):
        database.write(lambda uow: uow.jobs.cancel(job.id, job.project_id))
    database.write(lambda uow: uow.jobs.retry(job.id, job.project_id))
    for message_id in _messages(database):
        database.write(lambda uow, m=message_id: uow.ringing.finish(m))  # type: ignore[misc]  # bound at definition
    again = ring_and_claim(database, session_id)
    assert [c.attempt for c in again] == [2]
    told = [e.data["reason"] for e in database.read(lambda uow: uow.events.after(job.id, 0))]
    assert told == ["accepted", "claimed", "failed", "retry_requested", "claimed"]


def test_a_deadline_that_passes_between_two_attempts_does_not_deny_the_first(database: Database) -> None:
    late = dataclasses.replace(new_job(project_of(database)), deadline_s=600)
    [job] = database.write(lambda uow: uow.jobs.add_all([late]))
    session_id = open_session(database)
    [claimed] = ring_and_claim(database, session_id)
    database.write(lambda uow: uow.attempts.hand_back([(claimed.id, claimed.attempt)]))
    database.write(lambda uow: uow.conn.execute(sa.update(jobs).values(deadline_at=uow.now - 1)))
    assert database.write(lambda uow: uow.jobs.expire_deadlines()) == [job.id]
    error = database.read(lambda uow: uow.jobs.get(job.id, job.project_id)).error
    assert error is not None and error["code"] == "deadline_exceeded"
    assert error["message"] == "the deadline passed while the job waited to run"


def test_a_retryable_failure_waits_and_then_gives_up(database: Database) -> None:
    job = submit(database, 1)[0]
    project_id = project_of(database)
    session_id = open_session(database)
    for attempt in (1, 2, 3):
        claimed = ring_and_claim(database, session_id)
        assert [c.attempt for c in claimed] == [attempt]
        error = {"code": "store_unavailable", "message": "later", "param": None}
        failure = Failure(job.id, attempt, error, retry_after_s=0.0)
        database.write(lambda uow, f=failure: uow.attempts.fail([f], max_retries=2))  # type: ignore[misc]  # bound at definition
    assert database.read(lambda uow: uow.jobs.get(job.id, project_id)).state is JobState.FAILED


def _messages(database: Database) -> list[str]:
    return [row.id for row in database.read(lambda uow: uow.conn.execute(sa.select(messages.c.id)).all())]
