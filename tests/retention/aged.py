"""Databases whose jobs ended long ago."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from ondol.contract.ids import new_id
from ondol.contract.states import JobState
from ondol.control.purging import DAY_S, Purger, Retention
from ondol.sql.database import Database
from ondol.sql.files import NewFile
from ondol.sql.records import JobRecord, NewShard
from ondol.sql.tables import files, jobs
from tests.job_fixtures import completions, finish_messages, new_job, open_session, project_of, ring_and_claim, submit


def ended_jobs(database: Database, num: int, *, days_ago: float) -> list[JobRecord]:
    """Jobs that succeeded so long ago."""
    submitted = submit(database, num)
    run_all(database)
    age(database, [job.id for job in submitted], days_ago)
    return submitted


def run_all(database: Database) -> None:
    """Complete whatever waits."""
    session_id = open_session(database)
    while claimed := ring_and_claim(database, session_id):
        database.write(lambda uow, done=claimed: uow.attempts.complete(completions(done)))  # type: ignore[misc]  # bound at definition
        finish_messages(database)


def sharded_job(database: Database, num_shards: int, *, days_ago: float) -> JobRecord:
    """A job of so many shards, all of which succeeded, with a blob each."""
    shards = tuple(NewShard(i, i, 1, 4, payload=b'["a"]') for i in range(num_shards))
    job = dataclasses.replace(new_job(project_of(database)), num_inputs=num_shards, shards=shards)
    [record] = database.write(lambda uow: uow.jobs.add_all([job]))
    session_id = open_session(database)
    while claimed := ring_and_claim(database, session_id):
        done = [
            dataclasses.replace(
                one, data=None, blob_path=f"{one.job_id}/1.bin", summary={"shape": [1, 1], "tokens": [1], "errors": {}}
            )
            for one in completions(claimed)
        ]
        database.write(lambda uow, d=done: uow.attempts.complete(d))  # type: ignore[misc]  # bound at definition
        finish_messages(database)
    age(database, [record.id], days_ago)
    return record


def age(database: Database, ids: Sequence[str], days_ago: float) -> None:
    """Let these jobs have ended so long ago."""
    statement = sa.update(jobs).where(jobs.c.id.in_(ids)).values(finished_at=jobs.c.finished_at - days_ago * DAY_S)
    database.write(lambda uow: uow.conn.execute(statement))


def uploaded(database: Database, *, days_ago: float, expires_after_s: float | None = None) -> str:
    """The id of a file that was uploaded so long ago."""
    new = NewFile(new_id("file"), project_of(database), "a.jsonl", "batch", 1, "0" * 64, expires_after_s)
    database.write(lambda uow: uow.files.add(new))
    statement = sa.update(files).where(files.c.id == new.id).values(created_at=files.c.created_at - days_ago * DAY_S)
    database.write(lambda uow: uow.conn.execute(statement))
    return new.id


def count(database: Database, table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
    """Rows of a table."""
    query = sa.select(sa.func.count()).select_from(table).where(*where)
    return int(database.read(lambda uow: uow.conn.execute(query).scalar_one()))


def purge_all(database: Database, **days: float) -> int:
    """Everything that is over its time after so many days (`jobs=90`); how much that was."""
    kept: dict[str, Any] = {f"{name}_s": num * DAY_S for name, num in days.items()}
    purger = Purger(database, retention=Retention(**kept, round_s=60), lead=lambda _: True)
    return purger.purge()


def state_of(database: Database, job: JobRecord) -> JobState:
    """Where the job stands."""
    return database.read(lambda uow: uow.jobs.get(job.id, job.project_id)).state
