"""The first attempt at a job over a file cuts it into shards; they are recorded once, under that attempt alone."""

from __future__ import annotations

import pytest

from ondol.contract.errors import FileInUse
from ondol.contract.states import JobState
from ondol.sql.database import Database
from ondol.sql.files import NewFile
from ondol.sql.records import ClaimedJob, InputBlob, JobRecord
from ondol.sql.unit_of_work import UnitOfWork
from tests.bulk.sql.sharded import (
    FILE_ID,
    WORKER,
    claim_all,
    complete,
    events_of,
    fail,
    look,
    new_shards,
    num_open,
    outcomes_of,
    reasons_of,
    states_of_shards,
    submit_file_job,
)
from tests.job_fixtures import open_session, project_of

pytestmark = pytest.mark.integration


def _record(database: Database, planning: ClaimedJob, *, attempt: int | None = None, is_retry: bool = False) -> bool:
    def record(uow: UnitOfWork) -> bool:
        uow.is_retry = is_retry
        shards = new_shards([4, 2], blob_path=f"{planning.id}/1.bin")
        number = planning.attempt if attempt is None else attempt
        return uow.shards.record(planning.id, number, shards, num_inputs=6, estimated_tokens=32_000)

    return database.write(record)


def _planned(database: Database) -> tuple[JobRecord, str]:
    job = submit_file_job(database)
    session_id = open_session(database)
    [planning] = claim_all(database, session_id)
    assert _record(database, planning)
    return job, session_id


def test_the_planning_attempt_gets_the_file_and_shards_get_their_bytes(database: Database) -> None:
    job = submit_file_job(database)
    session_id = open_session(database)
    [planning] = claim_all(database, session_id)
    assert (planning.id, planning.attempt, planning.input_file_id) == (job.id, 1, FILE_ID)
    assert _record(database, planning)
    claimed = claim_all(database, session_id)
    assert [(c.id, c.num_inputs, c.input_file_id, c.payload) for c in claimed] == [
        (f"{job.id}.000000", 4, None, b""),
        (f"{job.id}.000001", 2, None, b""),
    ]
    expected = [shard.blob for shard in new_shards([4, 2], blob_path=f"{job.id}/1.bin")]
    assert [c.input_blob for c in claimed] == expected and isinstance(expected[0], InputBlob)
    assert [(c.project_id, c.version_id, c.priority, c.options) for c in claimed] == [
        (job.project_id, "ver_tiny", job.priority, {})
    ] * 2


def test_a_planned_job_runs_under_no_session_until_its_shards_have_ended(database: Database) -> None:
    job, session_id = _planned(database)
    now = look(database, job)
    assert (now.state, now.num_inputs, now.is_sharded, num_open(database, job)) == (JobState.RUNNING, 6, True, 2)
    assert database.read(lambda uow: uow.attempts.held_by(session_id)) == []
    assert outcomes_of(database, job.id) == ["planned"]
    complete(database, claim_all(database, session_id))
    ended = look(database, job)
    assert (ended.state, ended.num_done, ended.attempt, ended.tokens) == (JobState.SUCCEEDED, 6, 1, 42)
    assert reasons_of(database, job) == ["accepted", "claimed", "shards_ended"]
    assert len([e for e in events_of(database, job) if e.type == "progress"]) == 2
    found = database.read(lambda uow: uow.results.get(job.id))
    assert found is not None and found.attempt == 1


def test_a_plan_of_an_overtaken_attempt_is_refused(database: Database) -> None:
    job = submit_file_job(database)
    session_id = open_session(database)
    [planning] = claim_all(database, session_id)
    database.write(lambda uow: uow.attempts.take_back(session_id))
    assert not _record(database, planning)
    [again] = claim_all(database, session_id)
    assert again.attempt == 2
    assert not _record(database, planning)
    assert not _record(database, planning, is_retry=True)
    assert _record(database, again)
    assert not _record(database, planning, is_retry=True)
    assert len(states_of_shards(database, job)) == 2


def test_a_plan_whose_commit_was_not_answered_is_recorded_once(database: Database) -> None:
    job = submit_file_job(database)
    [planning] = claim_all(database, open_session(database))
    assert _record(database, planning)
    assert _record(database, planning, is_retry=True)
    assert _record(database, planning), "the caller may have asked again itself, long after"
    assert states_of_shards(database, job) == [JobState.QUEUED] * 2


def test_a_planned_job_moves_with_its_shards_alone(database: Database) -> None:
    job = submit_file_job(database)
    [planning] = claim_all(database, open_session(database))
    assert _record(database, planning)
    pair = (planning.id, planning.attempt)
    assert fail(database, [planning]) == []
    assert complete(database, [planning]) == []
    assert database.write(lambda uow: uow.attempts.hand_back([pair])) == []
    assert not database.write(lambda uow: uow.attempts.lose(*pair, {"code": "worker_lost"}, worker=WORKER))
    assert (look(database, job).state, num_open(database, job)) == (JobState.RUNNING, 2)


def test_a_plan_of_a_cancelled_job_is_refused(database: Database) -> None:
    job = submit_file_job(database)
    [planning] = claim_all(database, open_session(database))
    database.write(lambda uow: uow.jobs.cancel(job.id, job.project_id))
    assert not _record(database, planning)
    assert states_of_shards(database, job) == []
    assert outcomes_of(database, job.id) == ["cancelled"]


def test_deleting_frees_the_blob_of_all_shards_once(database: Database) -> None:
    job, session_id = _planned(database)
    complete(database, claim_all(database, session_id))
    freed = database.write(lambda uow: uow.jobs.delete(job.id, job.project_id))
    assert freed.inputs == (f"{job.id}/1.bin",)


def test_a_file_is_kept_until_the_job_that_names_it_is_planned(database: Database) -> None:
    project_id = project_of(database)
    new = NewFile(FILE_ID, project_id, "texts.jsonl", "batch", 10, "0" * 64, expires_after_s=-1.0)
    database.write(lambda uow: uow.files.add(new))
    job = submit_file_job(database)
    assert database.write(lambda uow: uow.purging.purge_files(older_than_s=None)).num == 0
    [planning] = claim_all(database, open_session(database))
    assert database.write(lambda uow: uow.purging.purge_files(older_than_s=None)).num == 0
    assert _record(database, planning)
    assert database.write(lambda uow: uow.purging.purge_files(older_than_s=None)).num == 1
    assert database.read(lambda uow: uow.files.existing([FILE_ID])) == set()
    assert look(database, job).input_file_id == FILE_ID


def test_a_file_of_an_unplanned_job_cannot_be_deleted(database: Database) -> None:
    project_id = project_of(database)
    database.write(lambda uow: uow.files.add(NewFile(FILE_ID, project_id, "texts.jsonl", "batch", 10, "0" * 64)))
    job = submit_file_job(database)
    with pytest.raises(FileInUse, match=job.id):
        database.write(lambda uow: uow.files.delete(FILE_ID, project_id))
    database.write(lambda uow: uow.jobs.cancel(job.id, project_id))
    assert database.write(lambda uow: uow.files.delete(FILE_ID, project_id)).id == FILE_ID


def test_the_worker_of_the_plan_is_not_the_worker_of_the_job(database: Database) -> None:
    job, _ = _planned(database)
    now = look(database, job)
    assert (now.worker, now.timings, now.tokens) == (None, None, None)
    assert now.message_id is not None, f"the message of the plan shows {WORKER}'s task"
