"""The loss that is one too many moves a job once: one event, one number, one word to whoever waits for its end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa

from ondol.contract.states import JobState
from ondol.sql.database import Database
from ondol.sql.records import JobRecord
from ondol.sql.tables import jobs, notices
from tests.job_fixtures import new_job, open_session, project_of, ring_and_claim

pytestmark = pytest.mark.integration

ERROR = {"code": "device_lost", "message": "the device process died", "param": None}


def test_the_last_lapse_is_one_move(database: Database) -> None:
    job = _alone(database)
    for number in range(3):
        session_id = _claimed_under(database, number)
        taken = database.write(lambda uow, s=session_id: uow.attempts.take_back(s))  # type: ignore[misc]  # bound at definition
        assert taken == [job.id]
        database.write(lambda uow, s=session_id: uow.sessions.end(s, reason="lapsed"))  # type: ignore[misc]  # bound at definition
    assert _moves(database, job) == [
        (None, "queued", "accepted"),
        *[("queued", "running", "claimed"), ("running", "queued", "session_lapsed")] * 2,
        ("queued", "running", "claimed"),
        ("running", "failed", "worker_lost"),
    ]
    _check_end(database, job)


def test_the_last_death_of_the_process_is_one_move(database: Database) -> None:
    job = _alone(database)
    session_id = open_session(database)
    for number in range(1, 4):
        assert [claimed.attempt for claimed in ring_and_claim(database, session_id)] == [number]
        lost = database.write(lambda uow, n=number: uow.attempts.lose(job.id, n, ERROR, worker="cpu0@test"))  # type: ignore[misc]  # bound at definition
        assert lost
    assert _moves(database, job)[-3:] == [
        ("running", "queued", "process_died"),
        ("queued", "running", "claimed"),
        ("running", "failed", "worker_lost"),
    ]
    _check_end(database, job)


def test_a_session_with_a_last_loss_and_an_early_one_moves_each_as_it_is_due(database: Database) -> None:
    last, early = _alone(database), _alone(database)
    database.write(lambda uow: uow.conn.execute(sa.update(jobs).where(jobs.c.id == last.id).values(num_losses=2)))
    session_id = _claimed_under(database, 0, num=2)
    taken = database.write(lambda uow: uow.attempts.take_back(session_id))
    assert sorted(taken) == sorted([last.id, early.id])
    assert _moves(database, last)[-1] == ("running", "failed", "worker_lost")
    assert _moves(database, early)[-1] == ("running", "queued", "session_lapsed")
    waiting = database.read(lambda uow: uow.jobs.get(early.id, early.project_id))
    assert (waiting.state, waiting.error, waiting.finished_at) == (JobState.QUEUED, None, None)


def _alone(database: Database) -> JobRecord:
    """A queued job that runs alone from now on, so that each loss counts."""
    new = replace(new_job(project_of(database)), webhook="http://localhost/told")
    [job] = database.write(lambda uow: uow.jobs.add_all([new]))
    database.write(lambda uow: uow.conn.execute(sa.update(jobs).where(jobs.c.id == job.id).values(is_alone=True)))
    return job


def _claimed_under(database: Database, number: int, *, num: int = 1) -> str:
    """A new session that runs all that waits."""
    worker = f"cpu{number}@test"
    session_id = open_session(database, worker)
    assert len(ring_and_claim(database, session_id, worker)) == num
    return session_id


def _moves(database: Database, job: JobRecord) -> list[tuple[str | None, str, str]]:
    """(from, to, reason) of each event; their numbers have no gap and end at the job's own."""
    found = database.read(lambda uow: uow.events.after(job.id, 0))
    number = sa.select(jobs.c.event_seq).where(jobs.c.id == job.id)
    last = database.read(lambda uow: uow.conn.execute(number).scalar_one())
    assert [event.seq for event in found] == list(range(1, last + 1))
    return [(event.data["from"], event.data["to"], event.data["reason"]) for event in found]


def _check_end(database: Database, job: JobRecord) -> None:
    found = database.read(lambda uow: uow.jobs.get(job.id, job.project_id))
    assert found.state is JobState.FAILED and found.finished_at is not None
    assert found.error is not None and found.error["code"] == "worker_lost"
    told = sa.select(sa.func.count()).select_from(notices).where(notices.c.job_id == job.id)
    assert database.read(lambda uow: uow.conn.execute(told).scalar_one()) == 1
