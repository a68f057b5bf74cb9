"""Rows that are written together are each what they would be alone, whatever stands in them and whoever else fails."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from ondol.contract.errors import Conflict, IllegalTransition
from ondol.contract.states import JobState
from ondol.sql.database import Database
from ondol.sql.many_rows import MAX_BYTES, MAX_ROWS
from ondol.sql.tables import attempts, events, job_inputs, jobs, results
from ondol.sql.unit_of_work import UnitOfWork
from tests.job_fixtures import completions, new_job, open_session, project_of, ring_and_claim, submit

pytestmark = pytest.mark.integration

AWKWARD = [
    '"',
    "\\",
    "a,b",
    "{}",
    "NULL",
    "null",
    "",
    " ",
    "%s",
    "'; --",
    "line\nbreak\ttab",
    "안녕하세요",
    "🔥",
    "\x00",
]


def test_values_come_back_as_they_were_given(database: Database) -> None:
    project_id = project_of(database)
    new = [
        replace(
            new_job(project_id),
            payload=bytes([i]) + bytes(range(256)) + text.encode(),
            options={"text": text, text or "empty": [None, True, 1, 1.5, {"deep": text}]},
            metadata={"text": text},
            model_ref=None if i % 2 else text.replace("\x00", ""),
            deadline_s=None if i % 3 else 1e6 + i / 7,
        )
        for i, text in enumerate(AWKWARD)
    ]
    database.write(lambda uow: uow.jobs.add_all(new))
    rows = _by_id(database, jobs)
    inputs = {row.job_id: bytes(row.payload) for row in _all(database, job_inputs)}
    for job in new:
        row = rows[job.id]
        assert (row.options, row.job_metadata, row.model_ref) == (job.options, job.metadata, job.model_ref)
        assert inputs[job.id] == job.payload
        assert row.deadline_at == (None if job.deadline_s is None else row.created_at + job.deadline_s)
        assert (row.error, row.webhook, row.is_alone, row.num_done) == (None, None, False, 0)


def test_what_only_looks_alike_is_told_apart(database: Database) -> None:
    project_id = project_of(database)
    new = [replace(new_job(project_id), options={"value": value}) for value in (1, True, 1.0)]
    database.write(lambda uow: uow.jobs.add_all(new))
    rows = _by_id(database, jobs)
    assert [repr(rows[job.id].options["value"]) for job in new] == ["1", "True", "1.0"]


def test_more_rows_than_one_statement_takes_are_all_written(database: Database) -> None:
    num = MAX_ROWS + 2
    submit(database, num)
    project_id = project_of(database)
    large = [replace(new_job(project_id), payload=bytes(MAX_BYTES // 2 + 1)) for _ in range(3)]
    database.write(lambda uow: uow.jobs.add_all(large))
    for table in (jobs, job_inputs, events):
        count = sa.select(sa.func.count()).select_from(table)
        assert database.read(lambda uow, q=count: uow.conn.execute(q).scalar_one()) == num + len(large)  # type: ignore[misc]  # bound at definition


def test_jobs_of_different_attempts_are_completed_together_and_stale_ones_are_left_out(database: Database) -> None:
    submit(database, 3)
    session_id = open_session(database)
    [first, *others] = ring_and_claim(database, session_id)
    database.write(lambda uow: uow.attempts.hand_back([(first.id, first.attempt)]))
    for message in {row.message_id for row in _all(database, attempts)}:
        database.write(lambda uow, m=message: uow.ringing.finish(m))  # type: ignore[misc]  # bound at definition
    [again] = ring_and_claim(database, session_id)
    assert (again.id, again.attempt) == (first.id, 2)
    done = completions([again, first, *others])
    awkward = [replace(each, summary={"n": i}, data=bytes([0, 34, 92, 255, i])) for i, each in enumerate(done)]
    fresh = [each for each in awkward if (each.job_id, each.attempt) != (first.id, 1)]
    recorded = database.write(lambda uow: uow.attempts.complete([awkward[1]]))
    assert recorded == [], "a stale attempt records nothing"
    assert sorted(database.write(lambda uow: uow.attempts.complete(fresh))) == sorted(d.job_id for d in fresh)
    found = {row.job_id: row for row in _all(database, results)}
    for each in fresh:
        assert (found[each.job_id].summary, bytes(found[each.job_id].data)) == (each.summary, each.data)
        assert found[each.job_id].attempt == each.attempt
    ended = {(row.job_id, row.attempt): row.outcome for row in _all(database, attempts)}
    assert ended.pop((first.id, 1)) == "handed_back" and set(ended.values()) == {"succeeded"}


def test_a_unit_that_fails_takes_none_of_its_group_along(database: Database) -> None:
    project_id = project_of(database)
    good, bad, last = new_job(project_id), replace(new_job(project_id), task_id="t"), new_job(project_id)
    database.write(lambda uow: uow.jobs.add_all([replace(new_job(project_id), task_id="t")]))
    told: list[str] = []

    def add(uow: UnitOfWork, job: Any) -> str:
        uow.jobs.add_all([job])
        uow.after_commit(lambda: told.append(job.id))
        return str(job.id)

    def refuse(_uow: UnitOfWork) -> None:
        raise IllegalTransition("no")

    release = threading.Event()
    held = database.submit(lambda _uow: release.wait(10))
    waiting: list[Future[Any]] = [
        database.submit(lambda uow: add(uow, good)),
        database.submit(lambda uow: add(uow, bad)),
        database.submit(refuse),
        database.submit(lambda uow: add(uow, last)),
    ]
    release.set()
    assert held.result(10)
    assert [waiting[i].result(10) for i in (0, 3)] == [good.id, last.id]
    assert isinstance(waiting[1].exception(10), Conflict)
    assert isinstance(waiting[2].exception(10), IllegalTransition)
    assert told == [good.id, last.id], "what is done after the commit is done once"
    known = database.read(lambda uow: uow.jobs.states_of([good.id, bad.id, last.id]))
    assert known.keys() == {good.id, last.id}
    assert {state for state, _ in known.values()} == {JobState.QUEUED}


def test_the_writer_finds_jobs_by_index_also_while_the_tables_are_nearly_empty(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("SQLite plans by the schema alone; tests/bulk/sql/test_costs.py looks there")
    submit(database, 2)
    move = "UPDATE jobs SET num_done = 0 FROM unnest(%s::text[]) AS given (id) WHERE jobs.id = given.id"
    plan = database.write(lambda uow: uow.conn.exec_driver_sql(f"EXPLAIN {move}", ("{a,b}",)).scalars().all())
    assert any("Index" in step for step in plan) and not any("Seq Scan on jobs" in step for step in plan), plan


def _all(database: Database, table: sa.Table) -> list[Any]:
    return list(database.read(lambda uow: uow.conn.execute(sa.select(table)).all()))


def _by_id(database: Database, table: sa.Table) -> dict[str, Any]:
    return {row.id: row for row in _all(database, table)}
