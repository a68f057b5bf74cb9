"""Whatever is done to a sharded job is done to its shards, and outside it is one job."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa

from ondol.contract.errors import IllegalTransition, JobNotFound
from ondol.contract.states import JobState, Priority
from ondol.sql.backlog import Amount, count_backlog
from ondol.sql.database import Database
from ondol.sql.measures import take_measures
from ondol.sql.tables import attempts, events, job_inputs, jobs, results
from tests.bulk.sql.sharded import (
    SHARD_TOKENS,
    claim,
    claim_all,
    complete,
    done,
    events_of,
    fail,
    look,
    num_open,
    outcomes_of,
    reasons_of,
    states_of_shards,
    submit_sharded,
    unfinished_ids,
)
from tests.job_fixtures import LIMITS, open_session, submit

pytestmark = pytest.mark.integration


def test_cancelling_cancels_the_shards_and_their_attempts(database: Database) -> None:
    job = submit_sharded(database, [2, 2, 2])
    session_id = open_session(database)
    ids = unfinished_ids(database, job)
    claimed = claim(database, ids[:2], session_id, "cpu0@test")
    complete(database, claimed[:1])
    cancelled = database.write(lambda uow: uow.jobs.cancel(job.id, job.project_id))
    assert (cancelled.state, cancelled.num_done) == (JobState.CANCELLED, 2)
    assert look(database, job).tokens == 14, "what ran before"
    assert states_of_shards(database, job) == [JobState.SUCCEEDED, JobState.CANCELLED, JobState.CANCELLED]
    assert [outcomes_of(database, each) for each in ids] == [["succeeded"], ["cancelled"], []]
    assert unfinished_ids(database, job) == []

    assert complete(database, claimed[1:]) == [], "what comes later is refused"
    assert database.write(lambda uow: uow.ringing.choose(LIMITS)) == []
    assert look(database, job).event_seq == cancelled.event_seq
    assert reasons_of(database, job) == ["accepted", "shard_claimed", "cancel_requested"]
    kept = database.read(lambda uow: uow.shards.page(job.id))
    assert [shard.result is not None for shard in kept] == [True, False, False]
    assert database.read(lambda uow: uow.results.get(job.id)) is None
    again = database.write(lambda uow: uow.jobs.cancel(job.id, job.project_id))
    assert (again.state, again.event_seq) == (JobState.CANCELLED, cancelled.event_seq)


def test_retrying_runs_the_failed_shards_again_and_nothing_else(database: Database) -> None:
    job = submit_sharded(database, [3, 2])
    session_id = open_session(database)
    fail(database, claim_all(database, session_id))
    assert look(database, job).state is JobState.FAILED
    again = database.write(lambda uow: uow.jobs.retry(job.id, job.project_id))
    assert (again.state, again.num_done, again.error, num_open(database, job)) == (JobState.QUEUED, 0, None, 2)
    claimed = claim_all(database, session_id)
    assert [(c.id, c.attempt) for c in claimed] == [(f"{job.id}.000000", 2), (f"{job.id}.000001", 2)]
    complete(database, claimed[:1])
    fail(database, claimed[1:])
    ended = look(database, job)
    assert (ended.state, ended.num_done) == (JobState.SUCCEEDED, 5)
    expected = ["accepted", "shard_claimed", "shards_ended", "retry_requested", "shard_claimed", "shards_ended"]
    assert reasons_of(database, job) == expected
    with pytest.raises(IllegalTransition):
        database.write(lambda uow: uow.jobs.retry(job.id, job.project_id))


def test_deleting_leaves_no_row_and_names_every_file(database: Database) -> None:
    job = submit_sharded(database, [2, 2])
    with pytest.raises(IllegalTransition):
        database.write(lambda uow: uow.jobs.delete(job.id, job.project_id))
    first, second = claim_all(database, open_session(database))
    large = replace(done(first), data=None, blob_path=f"{first.id}/1.bin")
    database.write(lambda uow: uow.attempts.complete([large, done(second)]))
    freed = database.write(lambda uow: uow.jobs.delete(job.id, job.project_id))
    assert (freed.results, freed.inputs) == ((f"{first.id}/1.bin",), ())
    for table in (jobs, job_inputs, attempts, events, results):
        count = sa.select(sa.func.count()).select_from(table)
        assert database.read(lambda uow, q=count: uow.conn.execute(q).scalar_one()) == 0, table.name  # type: ignore[misc]  # bound at definition


def test_shards_are_read_in_the_order_of_their_inputs(database: Database) -> None:
    job = submit_sharded(database, [3, 3, 2])
    claimed = claim_all(database, open_session(database))
    complete(database, claimed[:1])
    page = database.read(lambda uow: uow.shards.page(job.id, from_input=2, limit=2))
    assert [(shard.number, shard.first_input, shard.num_inputs) for shard in page] == [(0, 0, 3), (1, 3, 3)]
    assert page[0].result is not None and page[0].result.data == b"\0" * 12
    assert page[1].result is None
    assert [s.number for s in database.read(lambda uow: uow.shards.page(job.id, from_input=3))] == [1, 2]
    assert [s.number for s in database.read(lambda uow: uow.shards.page(job.id, from_input=7))] == [2]


def test_nobody_outside_sees_a_shard(database: Database) -> None:
    job = submit_sharded(database, [3, 2], task_id="task-1")
    shard_id = f"{job.id}.000000"
    with pytest.raises(JobNotFound):
        database.read(lambda uow: uow.jobs.get(shard_id, job.project_id))
    with pytest.raises(JobNotFound):
        database.write(lambda uow: uow.jobs.cancel(shard_id, job.project_id))
    assert database.read(lambda uow: uow.jobs.get_many([shard_id, job.id], job.project_id)) == [job]
    assert database.read(lambda uow: uow.jobs.page(job.project_id)) == ([job], False)
    assert database.read(lambda uow: uow.jobs.by_task("task-1", job.project_id)) == job


def test_a_sharded_job_counts_as_one_and_its_shards_weigh_what_they_weigh(database: Database) -> None:
    job = submit_sharded(database, [3, 2, 1])
    [plain] = submit(database, 1, priority=Priority.BULK)
    queued = database.read(lambda uow: count_backlog(uow, window_s=1.0, since=0.0)).queued.values()
    assert sum(queued, Amount()) == Amount(2, 3 * SHARD_TOKENS + 8)
    assert database.read(lambda uow: uow.jobs.queue_position(job)) == 0
    assert database.read(lambda uow: uow.jobs.queue_position(plain)) == 1
    measures = database.read(take_measures)
    assert (measures.num_queued["bulk"], measures.num_running["embedding"]) == (2, 0)

    ids = unfinished_ids(database, job)
    claimed = claim(database, ids[:2], open_session(database), "cpu0@test")
    measures = database.read(take_measures)
    assert (measures.num_queued["bulk"], measures.num_running["embedding"]) == (2, 1)
    complete(database, claimed)
    assert database.read(lambda uow: count_backlog(uow, window_s=1.0, since=0.0)).ended == {}
    complete(database, claim(database, ids[2:], claimed_by(database), "cpu0@test"))
    ended = database.read(lambda uow: count_backlog(uow, window_s=1.0, since=0.0)).ended
    assert ended == {job.project_id: Amount(1, 0)}, "its tokens left with its shards"


def claimed_by(database: Database) -> str:
    """The session that is open."""
    return database.read(lambda uow: uow.sessions.open_sessions())[0].id


def test_the_job_itself_is_never_rung_nor_recalled(database: Database) -> None:
    job = submit_sharded(database, [2, 2])
    session_id = open_session(database)
    rung = [pair[0] for message in database.write(lambda uow: uow.ringing.choose(LIMITS)) for pair in message.jobs]
    assert job.id not in rung and rung
    database.write(lambda uow: uow.ringing.recall_unclaimed())
    claim_all(database, session_id)
    assert database.write(lambda uow: uow.ringing.recall_orphans()) == 0
    assert database.write(lambda uow: uow.attempts.take_back_forgotten()) == []
    assert look(database, job).state is JobState.RUNNING
    assert len(events_of(database, job)) == 2


def test_a_lost_message_of_shards_is_rung_again(database: Database) -> None:
    job = submit_sharded(database, [2, 2])
    session_id = open_session(database)
    assert database.write(lambda uow: uow.ringing.choose(LIMITS))
    assert database.write(lambda uow: uow.ringing.recall_unclaimed()) > 0
    assert len(claim_all(database, session_id)) == 2
    assert look(database, job).state is JobState.RUNNING
