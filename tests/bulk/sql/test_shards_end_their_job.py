"""A sharded job runs while its shards do, and ends once, with the last of them."""

from __future__ import annotations

import hashlib

import pytest

from ondol.contract.states import JobState
from ondol.sql.database import Database
from ondol.sql.records import Failure
from tests.bulk.sql.sharded import (
    ERROR,
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
from tests.job_fixtures import open_session

pytestmark = pytest.mark.integration


def test_shards_are_recorded_with_their_job_and_claimed_in_its_place(database: Database) -> None:
    job = submit_sharded(database, [3, 3, 2])
    assert (job.state, job.num_inputs, job.is_sharded) == (JobState.QUEUED, 8, True)
    claimed = claim_all(database, open_session(database))
    assert [(c.id, c.num_inputs, c.model_ref) for c in claimed] == [
        (f"{job.id}.000000", 3, "tiny:1"),
        (f"{job.id}.000001", 3, "tiny:1"),
        (f"{job.id}.000002", 2, "tiny:1"),
    ]
    assert claimed[2].payload == b'["text","text"]' and claimed[2].input_blob is None
    now = look(database, job)
    assert now.state is JobState.RUNNING and now.started_at is not None
    assert reasons_of(database, job) == ["accepted", "shard_claimed"]


def test_the_last_shard_ends_the_job_with_counts_progress_and_a_summary(database: Database) -> None:
    job = submit_sharded(database, [3, 3, 2])
    claimed = claim_all(database, open_session(database))
    assert complete(database, claimed[1:]) == [claimed[1].id, claimed[2].id]
    assert (look(database, job).num_done, num_open(database, job)) == (5, 1)
    assert look(database, job).tokens is None, "known with the end, as for every job"
    assert complete(database, claimed[:1]) == [claimed[0].id]

    ended = look(database, job)
    assert (ended.state, ended.num_done, ended.tokens, ended.worker) == (JobState.SUCCEEDED, 8, 56, None)
    assert ended.finished_at is not None and ended.error is None
    told = events_of(database, job)
    assert [e.data for e in told if e.type == "progress"] == [
        {"done": 3, "total": 8, "unit": "inputs"},
        {"done": 5, "total": 8, "unit": "inputs"},
        {"done": 8, "total": 8, "unit": "inputs"},
    ]
    assert reasons_of(database, job) == ["accepted", "shard_claimed", "shards_ended"]
    assert complete(database, claimed) == [], "nothing ends twice"
    assert look(database, job).event_seq == ended.event_seq


def test_the_summary_tells_of_all_shards_and_of_no_single_input(database: Database) -> None:
    job = submit_sharded(database, [3, 2])
    claimed = claim_all(database, open_session(database))
    completions = [done(claimed[0], errors=[1]), done(claimed[1])]
    database.write(lambda uow: uow.attempts.complete(completions))
    found = database.read(lambda uow: uow.results.get(job.id))
    assert found is not None and found.data is None and found.blob_path is None
    assert found.summary == {
        "shape": [5, 1],
        "model": "tiny:1",
        "dtype": "float32",
        "engine": "torch",
        "num_tokens": 35,
        "num_errors": 1,
        "is_sharded": True,
    }
    assert found.size_bytes == 20
    assert found.sha256 == hashlib.sha256("".join(each.sha256 for each in completions).encode()).hexdigest()


def test_a_shard_that_fails_for_good_leaves_item_errors_of_its_inputs(database: Database) -> None:
    job = submit_sharded(database, [3, 3, 2])
    claimed = claim_all(database, open_session(database))
    assert fail(database, claimed[:1]) == [claimed[0].id]
    assert look(database, job).state is JobState.RUNNING
    complete(database, claimed[1:])
    ended = look(database, job)
    assert (ended.state, ended.num_done, ended.error) == (JobState.SUCCEEDED, 8, None)
    found = database.read(lambda uow: uow.results.get(job.id))
    assert found is not None and found.summary["num_errors"] == 3 and found.summary["shape"] == [8, 1]
    shards = database.read(lambda uow: uow.shards.page(job.id))
    assert [(shard.state, shard.error, shard.result is None) for shard in shards] == [
        (JobState.FAILED, ERROR, True),
        (JobState.SUCCEEDED, None, False),
        (JobState.SUCCEEDED, None, False),
    ]


def test_a_job_of_which_every_shard_fails_has_the_first_error(database: Database) -> None:
    job = submit_sharded(database, [3, 2])
    claimed = claim_all(database, open_session(database))
    fail(database, claimed[1:], {"code": "second", "message": "no", "param": None})
    fail(database, claimed[:1], {"code": "first", "message": "no", "param": None})
    ended = look(database, job)
    assert ended.state is JobState.FAILED and ended.error is not None and ended.error["code"] == "first"
    assert database.read(lambda uow: uow.results.get(job.id)) is None
    assert reasons_of(database, job) == ["accepted", "shard_claimed", "shards_ended"]


def test_a_shard_that_is_tried_again_ends_nothing(database: Database) -> None:
    job = submit_sharded(database, [3, 2])
    session_id = open_session(database)
    claimed = claim_all(database, session_id)
    failure = Failure(claimed[0].id, 1, ERROR, retry_after_s=0.0)
    database.write(lambda uow: uow.attempts.fail([failure], max_retries=2))
    complete(database, claimed[1:])
    assert (look(database, job).state, num_open(database, job)) == (JobState.RUNNING, 1)
    again = claim_all(database, session_id)
    assert [(c.id, c.attempt) for c in again] == [(claimed[0].id, 2)]
    complete(database, again)
    assert look(database, job).state is JobState.SUCCEEDED
    assert outcomes_of(database, claimed[0].id) == ["failed", "succeeded"]


def test_a_stopping_worker_hands_shards_back_and_the_job_goes_on(database: Database) -> None:
    job = submit_sharded(database, [3, 2])
    session_id = open_session(database)
    claimed = claim_all(database, session_id)
    complete(database, claimed[:1])
    assert database.write(lambda uow: uow.sessions.stop(session_id, reason="stopped")) == [claimed[1].id]
    assert look(database, job).state is JobState.RUNNING
    assert states_of_shards(database, job) == [JobState.SUCCEEDED, JobState.QUEUED]
    complete(database, claim_all(database, open_session(database)))
    assert look(database, job).state is JobState.SUCCEEDED


def test_a_lapsed_session_gives_back_its_own_shards_alone(database: Database) -> None:
    job = submit_sharded(database, [2] * 4)
    first, second = open_session(database, "cpu0@test"), open_session(database, "cpu1@test")
    ids = unfinished_ids(database, job)
    lost = claim(database, ids[:2], first, "cpu0@test")
    kept = claim(database, ids[2:], second, "cpu1@test")
    assert (len(lost), len(kept)) == (2, 2)
    assert sorted(database.write(lambda uow: uow.attempts.take_back(first))) == [each.id for each in lost]
    database.write(lambda uow: uow.sessions.end(first, reason="lapsed"))
    complete(database, kept)
    assert (look(database, job).state, look(database, job).num_done) == (JobState.RUNNING, 4)
    assert complete(database, lost) == [], "what lapsed may not be recorded"

    again = claim(database, ids, second, "cpu1@test")
    assert [(c.id, c.attempt) for c in again] == [(each.id, 2) for each in lost]
    complete(database, again)
    ended = look(database, job)
    assert (ended.state, ended.num_done) == (JobState.SUCCEEDED, 8)


def test_a_shard_whose_worker_dies_again_and_again_runs_alone_and_fails_alone(database: Database) -> None:
    job = submit_sharded(database, [3, 2])
    complete(database, claim_all(database, open_session(database))[:1])
    database.write(lambda uow: uow.attempts.hand_back([(f"{job.id}.000001", 1)]))
    for lapse in range(6):
        worker = f"cpu{lapse}@test"
        session_id = open_session(database, worker)
        claimed = claim_all(database, session_id, worker)
        assert [c.is_alone for c in claimed] == [lapse >= 3]
        database.write(lambda uow, s=session_id: uow.attempts.take_back(s))  # type: ignore[misc]  # bound at definition
        database.write(lambda uow, s=session_id: uow.sessions.end(s, reason="lapsed"))  # type: ignore[misc]  # bound at definition
    assert states_of_shards(database, job) == [JobState.SUCCEEDED, JobState.FAILED]
    ended = look(database, job)
    assert (ended.state, ended.num_done) == (JobState.SUCCEEDED, 5)
    events_of(database, job)


def test_shards_that_nobody_began_in_time_fail_with_their_job(database: Database) -> None:
    late = submit_sharded(database, [3, 2], deadline_s=-1.0)
    assert database.write(lambda uow: uow.jobs.expire_deadlines()) == [f"{late.id}.000000", f"{late.id}.000001"]
    ended = look(database, late)
    assert ended.state is JobState.FAILED and ended.error is not None
    assert ended.error["code"] == "deadline_exceeded"
    assert reasons_of(database, late) == ["accepted", "shards_ended"]
    assert database.write(lambda uow: uow.jobs.expire_deadlines()) == []


def test_what_was_done_before_the_deadline_is_kept(database: Database) -> None:
    job = submit_sharded(database, [3, 2], deadline_s=-1.0)
    claimed = claim_all(database, open_session(database))
    database.write(lambda uow: uow.attempts.hand_back([(claimed[1].id, 1)]))
    database.write(lambda uow: uow.jobs.expire_deadlines())
    complete(database, claimed[:1])
    assert look(database, job).state is JobState.SUCCEEDED
    assert states_of_shards(database, job) == [JobState.SUCCEEDED, JobState.FAILED]


def test_notices_are_due_for_the_end_of_the_job_and_for_no_shard(database: Database) -> None:
    job = submit_sharded(database, [1, 1], webhook="https://example.test/hook", task_id="task-1")
    claimed = claim_all(database, open_session(database))
    complete(database, claimed[:1])
    assert database.read(lambda uow: uow.notices.of(job.id)) == []
    complete(database, claimed[1:])
    last = look(database, job).event_seq
    assert [(n.channel.value, n.seq) for n in database.read(lambda uow: uow.notices.of(job.id))] == [
        ("celery", last),
        ("webhook", last),
    ]
    assert database.read(lambda uow: uow.notices.of(claimed[0].id)) == []


def test_plain_jobs_and_shards_in_one_completion(database: Database) -> None:
    first, second = submit_sharded(database, [1, 1]), submit_sharded(database, [1])
    plain = submit_sharded(database, [], shards=(), num_inputs=1, estimated_tokens=8, payload=b'["text"]')
    claimed = claim_all(database, open_session(database))
    assert len(complete(database, claimed)) == 4
    for job in (first, second, plain):
        assert look(database, job).state is JobState.SUCCEEDED
        events_of(database, job)
