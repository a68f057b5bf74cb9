"""A commit whose answer was lost is made again, and a sharded job is planned once and ends once."""

from __future__ import annotations

import pytest

from ondol.contract.states import JobState
from ondol.sql.database import Database
from tests.bulk.sql.sharded import (
    claim_all,
    complete,
    events_of,
    look,
    new_sharded,
    new_shards,
    reasons_of,
    states_of_shards,
    submit_file_job,
    submit_sharded,
)
from tests.job_fixtures import open_session
from tests.servers import ON_POSTGRESQL
from tests.torn_postgres import TornPostgres

pytestmark = [pytest.mark.integration, ON_POSTGRESQL]


def test_submitting(database: Database, far: Database, link: TornPostgres) -> None:
    new = new_sharded(database, [2, 1])
    link.tear()
    far.write(lambda uow: uow.jobs.add_all([new]))
    assert [c.num_inputs for c in claim_all(database, open_session(database))] == [2, 1]


def test_planning(database: Database, far: Database, link: TornPostgres) -> None:
    job = submit_file_job(database)
    [planning] = claim_all(database, open_session(database))
    shards = new_shards([2, 1])
    link.tear()
    assert far.write(lambda uow: uow.shards.record(job.id, planning.attempt, shards, num_inputs=3, estimated_tokens=9))
    assert states_of_shards(database, job) == [JobState.QUEUED] * 2


def test_completing_the_last_shard(database: Database, far: Database, link: TornPostgres) -> None:
    job = submit_sharded(database, [2, 1])
    claimed = claim_all(database, open_session(database))
    link.tear()
    complete(far, claimed)
    assert (look(database, job).state, look(database, job).num_done) == (JobState.SUCCEEDED, 3)
    assert reasons_of(database, job) == ["accepted", "shard_claimed", "shards_ended"]
    assert len(events_of(database, job)) == 5


def test_cancelling(database: Database, far: Database, link: TornPostgres) -> None:
    job = submit_sharded(database, [2, 1])
    link.tear()
    assert far.write(lambda uow: uow.jobs.cancel(job.id, job.project_id)).state is JobState.CANCELLED
    assert reasons_of(database, job) == ["accepted", "cancel_requested"]
