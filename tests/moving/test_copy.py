"""A database is copied whole or not at all, between both engines; the old one takes no writes after it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from ondol.contract.errors import Conflict, DatabaseUnavailable, InvalidPayload
from ondol.contract.ids import new_id
from ondol.contract.states import JobState
from ondol.control.administration import upgrade_database
from ondol.control.moving import move_database, reopen_database
from ondol.sql import copying
from ondol.sql.database import Database
from ondol.sql.files import NewFile
from ondol.sql.tables import metadata, sessions
from tests.job_fixtures import (
    completions,
    new_fine_tune,
    new_job,
    open_database,
    open_session,
    project_of,
    ring_and_claim,
    submit,
)

pytestmark = pytest.mark.integration

ODD_TEXT = 'nul \x00, 안녕, "quotes", \\u0000, \U0001f525'


@pytest.fixture(params=["sqlite to postgresql", "postgresql to sqlite"])
def urls(request: pytest.FixtureRequest, sqlite_url: str, postgresql_url: str) -> tuple[str, str]:
    """Source and target, once in each direction."""
    is_from_sqlite = request.param.startswith("sqlite")
    return (sqlite_url, postgresql_url) if is_from_sqlite else (postgresql_url, sqlite_url)


@pytest.fixture
def source(urls: tuple[str, str]) -> Iterator[Database]:
    """A database with jobs that have ended, that run, and that wait."""
    database = open_database(urls[0])
    project_id = project_of(database)
    submit(database, 3)
    session_id = open_session(database)
    claimed = ring_and_claim(database, session_id)
    database.write(lambda uow: uow.attempts.complete(completions(claimed)))
    submit(database, 2)
    assert len(ring_and_claim(database, session_id)) == 2
    odd = dataclasses.replace(
        new_job(project_id), payload=json.dumps([ODD_TEXT]).encode(), metadata={"note": ODD_TEXT}, options={"x": 1.0}
    )
    file = NewFile(new_id("file"), project_id, "a.jsonl", "batch", 2**40, "0" * 64)
    database.write(lambda uow: uow.jobs.add_all([odd, new_fine_tune(project_id)]))
    database.write(lambda uow: uow.files.add(file))
    database.write(lambda uow: uow.keys.create(project="shop", name="first", is_admin=True))
    yield database
    database.close()


def rows_of(database: Database) -> dict[str, list[tuple[object, ...]]]:
    """Everything, by table and in an order that both engines have."""
    return {
        table.name: sorted(
            (tuple(row) for row in database.read(lambda uow, t=table: uow.conn.execute(sa.select(t)).all())),  # type: ignore[misc]  # bound at definition
            key=repr,
        )
        for table in metadata.sorted_tables
    }


def test_every_row_arrives_as_it_was_and_what_ran_waits_again(urls: tuple[str, str], source: Database) -> None:
    before = rows_of(source)
    told: list[copying.TableCopied] = []
    done = move_database(*urls, told=told.append)
    target = Database(urls[1])
    try:
        after = rows_of(target)
        changed = {name for name in before if before[name] != after[name]}
        assert changed == {"jobs", "attempts", "events", "messages", "sessions"}, "what ran was handed back, no more"
        assert done.num_handed_back == 2 and after["messages"] == []
        assert {table.name: table.num_rows for table in done.tables} == {
            name: len(rows) for name, rows in before.items()
        }
        assert list(done.tables) == told
        states = [job.state for job in target.read(lambda uow: uow.jobs.page(project_of(source), limit=50)[0])]
        assert states.count(JobState.SUCCEEDED) == 3 and states.count(JobState.QUEUED) == 3
        assert JobState.RUNNING not in states
        num_open = sa.select(sa.func.count()).select_from(sessions).where(sessions.c.ended_at.is_(None))
        assert target.read(lambda uow: uow.conn.execute(num_open).scalar_one()) == 0
        assert len(ring_and_claim(target, open_session(target))) == 3
    finally:
        target.close()


def test_the_old_database_can_be_read_and_takes_no_write_until_it_is_opened_again(
    urls: tuple[str, str], source: Database
) -> None:
    project_id = project_of(source)
    task = dataclasses.replace(new_job(project_id), task_id="a-task")
    source.write(lambda uow: uow.jobs.add_all([task]))
    move_database(*urls)
    again = dataclasses.replace(new_job(project_id), task_id="another-task")
    with pytest.raises(DatabaseUnavailable, match="ondol_moved"):
        source.write(lambda uow: uow.jobs.add_all([again]))
    with pytest.raises(DatabaseUnavailable, match="set ONDOL_DATABASE_URL to the new one"):
        source.write(lambda uow: uow.jobs.cancel(task.id, project_id))
    with pytest.raises(DatabaseUnavailable):
        open_session(source, "cpu1@test")
    assert source.read(lambda uow: uow.jobs.get(task.id, project_id)).state is JobState.QUEUED
    with pytest.raises(Conflict, match="was moved already"):
        move_database(*urls)
    assert reopen_database(urls[0]) and not reopen_database(urls[0])
    assert source.write(lambda uow: uow.jobs.add_all([again]))


def test_a_target_that_holds_something_is_refused_and_nothing_is_changed(
    urls: tuple[str, str], source: Database
) -> None:
    upgrade_database(urls[1])
    with pytest.raises(Conflict, match="not empty, it holds 1 projects"):
        move_database(*urls)
    assert submit(source, 1)


def test_a_copy_that_differs_is_not_kept(
    urls: tuple[str, str], source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = copying._as_values

    def damaged(table: sa.Table, row: sa.Row[tuple[object, ...]]) -> dict[str, object]:
        return real(table, row) | ({"text": "x", "payload": b"damaged"} if table.name == "job_inputs" else {})

    monkeypatch.setattr(copying, "_as_values", lambda t, r: {k: v for k, v in damaged(t, r).items() if k in t.c})
    with pytest.raises(Conflict, match="job_inputs"):
        move_database(*urls)
    monkeypatch.undo()
    assert submit(source, 1), "the old one is as it was"
    move_database(*urls)


def test_wrong_sources_and_targets_are_named(tmp_path: object, sqlite_url: str) -> None:
    open_database(sqlite_url).close()
    with pytest.raises(InvalidPayload, match="the database itself"):
        move_database(sqlite_url, sqlite_url)
    engine = sa.create_engine(sqlite_url)
    with engine.begin() as conn:
        conn.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
    engine.dispose()
    with pytest.raises(InvalidPayload, match="ondol db upgrade"):
        move_database(sqlite_url, f"{sqlite_url}2")
