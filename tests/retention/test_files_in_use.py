"""The files of a deleted version stay while an unfinished job runs on it; asking so reads no finished job."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest
import sqlalchemy as sa

from ondol.contract.states import JobState
from ondol.control.administration import manifests_in_use
from ondol.sql.database import Database
from ondol.sql.leftovers import SERVED
from ondol.sql.records import NewJob, NewShard
from ondol.sql.tables import jobs, versions
from tests.job_fixtures import (
    LIMITS,
    TRAINER,
    completions,
    new_fine_tune,
    new_job,
    open_database,
    open_session,
    open_trainer,
    project_of,
    ring_and_claim,
    ring_and_claim_training,
    validate,
)

pytestmark = pytest.mark.integration

DIGEST = "d" * 64


def deleted_version(database: Database) -> str:
    """The id of a version that was deleted long ago."""
    project_id = project_of(database)
    version = database.write(
        lambda uow: uow.models.publish(
            project_id=project_id,
            name="tiny",
            task="embedding",
            manifest_digest=DIGEST,
            size_bytes=1,
            spec={},
            job_id=None,
            attempt=None,
            lineage={},
        )
    ).version
    database.write(lambda uow: uow.conn.execute(sa.update(versions).values(deleted_at=1.0)))
    return version.id


def plain_job(project_id: str) -> NewJob:
    return new_job(project_id)


def sharded_job(project_id: str) -> NewJob:
    shards = tuple(NewShard(i, i, 1, 4, payload=b'["a"]') for i in range(2))
    return dataclasses.replace(new_job(project_id), num_inputs=2, shards=shards)


def waits(database: Database) -> None:
    """As it was submitted."""


def is_rung(database: Database) -> None:
    open_session(database)
    assert database.write(lambda uow: uow.ringing.choose(LIMITS))


def runs(database: Database) -> None:
    assert ring_and_claim(database, open_session(database))


def one_shard_is_left(database: Database) -> None:
    claimed = ring_and_claim(database, open_session(database))
    done = dataclasses.replace(completions(claimed)[0], summary={"shape": [1, 1], "tokens": [1], "errors": {}})
    database.write(lambda uow: uow.attempts.complete([done]))


def is_validated(database: Database) -> None:
    assert ring_and_claim_training(database, open_trainer(database))


def is_paused(database: Database) -> None:
    session_id = open_trainer(database)
    [check] = ring_and_claim_training(database, session_id)
    validate(database, check)
    [training] = ring_and_claim_training(database, session_id)
    assert database.write(lambda uow: uow.training.pause(training.id, training.attempt, worker=TRAINER))


@pytest.mark.parametrize(
    ("make", "bring", "state"),
    [
        (plain_job, waits, JobState.QUEUED),
        (plain_job, is_rung, JobState.QUEUED),
        (plain_job, runs, JobState.RUNNING),
        (sharded_job, waits, JobState.QUEUED),
        (sharded_job, one_shard_is_left, JobState.RUNNING),
        (new_fine_tune, waits, JobState.VALIDATING_FILES),
        (new_fine_tune, is_validated, JobState.VALIDATING_FILES),
        (new_fine_tune, is_paused, JobState.PAUSED),
    ],
)
def test_the_files_of_a_deleted_version_stay_for_an_unfinished_job(
    database: Database, make: Callable[[str], NewJob], bring: Callable[[Database], None], state: JobState
) -> None:
    job = dataclasses.replace(make(project_of(database)), version_id=deleted_version(database))
    database.write(lambda uow: uow.jobs.add_all([job]))
    bring(database)
    assert database.read(lambda uow: uow.jobs.get(job.id, job.project_id)).state is state
    assert manifests_in_use(database.url, grace_s=0) == {DIGEST}
    database.write(lambda uow: uow.jobs.cancel(job.id, job.project_id))
    assert manifests_in_use(database.url, grace_s=0) == set()
    assert manifests_in_use(database.url, grace_s=1e12) == {DIGEST}


def test_no_finished_job_is_read_for_it(sqlite_url: str) -> None:
    database = open_database(sqlite_url)
    plan = database.read(
        lambda uow: [
            str(row[-1])
            for row in uow.conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {SERVED.compile(uow.conn)}", _literals(uow.conn))
        ]
    )
    database.close()
    of_jobs = [line for line in plan if jobs.name in line]
    assert len(of_jobs) == 4 and all("INDEX ix_jobs_" in line for line in of_jobs), plan


def _literals(conn: sa.Connection) -> tuple[object, ...]:
    compiled = SERVED.compile(conn)
    return tuple(compiled.params[name] for name in compiled.positiontup or ())


def test_collecting_keeps_no_writer_waiting(sqlite_url: str) -> None:
    database = open_database(sqlite_url)
    database.close()
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # somebody writes, and does not end
        assert manifests_in_use(sqlite_url, grace_s=0) == set()
