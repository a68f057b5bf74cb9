"""Sharded jobs for tests of the SQL layer: recorded, rung, claimed, ended."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from ondol.contract.ids import new_id, new_job_id
from ondol.contract.kinds import JobKind
from ondol.contract.states import TERMINAL, JobState, Priority
from ondol.sql.database import Database
from ondol.sql.records import (
    ClaimedJob,
    Completion,
    EventRecord,
    Failure,
    InputBlob,
    JobRecord,
    JsonObject,
    NewJob,
    NewShard,
)
from ondol.sql.tables import attempts, jobs, messages
from ondol.sql.unit_of_work import UnitOfWork
from tests.job_fixtures import finish_messages, project_of, ring_and_claim

ERROR = {"code": "device_error", "message": "no", "param": None}
SHARD_TOKENS = 16_000
"""One shard a message: two do not fit the message's limit of tokens."""
WORKER = "cpu0@test"
FILE_ID = "file_" + "0" * 26


def unfinished_ids(database: Database, job: JobRecord) -> list[str]:
    """Ids of the job's shards that are queued or running, by number."""
    is_open = sa.and_(jobs.c.parent_id == job.id, jobs.c.state.not_in(TERMINAL))
    query = sa.select(jobs.c.id).where(is_open).order_by(jobs.c.id)
    return database.read(lambda uow: list(uow.conn.execute(query).scalars()))


def new_shards(sizes: Sequence[int], *, tokens: int = SHARD_TOKENS, blob_path: str | None = None) -> list[NewShard]:
    """Shards of so many inputs each, with a payload, or all in one blob."""
    shards = []
    for number, size in enumerate(sizes):
        payload = b'["' + b'","'.join([b"text"] * size) + b'"]'
        first = sum(sizes[:number])
        if blob_path is None:
            shards.append(NewShard(number, first, size, tokens, payload=payload))
        else:
            blob = InputBlob(blob_path, first * 10, len(payload), hashlib.sha256(payload).hexdigest())
            shards.append(NewShard(number, first, size, tokens, blob=blob))
    return shards


def new_sharded(database: Database, sizes: Sequence[int], **changes: Any) -> NewJob:
    """A bulk embedding job whose list was cut when it was accepted."""
    job = NewJob(
        id=new_job_id(),
        project_id=project_of(database),
        kind=JobKind.EMBEDDING,
        priority=Priority.BULK,
        payload=b"[]",
        options={},
        num_inputs=sum(sizes),
        estimated_tokens=SHARD_TOKENS * len(sizes),
        version_id="ver_tiny",
        model_ref="tiny:1",
        shards=tuple(new_shards(sizes)),
    )
    return replace(job, **changes)


def submit_sharded(database: Database, sizes: Sequence[int], **changes: Any) -> JobRecord:
    """Such a job, recorded."""
    new = new_sharded(database, sizes, **changes)
    return database.write(lambda uow: uow.jobs.add_all([new]))[0]


def submit_file_job(database: Database) -> JobRecord:
    """A job over a file that has not been planned."""
    return submit_sharded(database, [], input_file_id=FILE_ID, shards=(), estimated_tokens=1_000)


def claim_all(database: Database, session_id: str, worker: str = WORKER) -> list[ClaimedJob]:
    """Everything that waits, claimed by one worker, message after message."""
    claimed: list[ClaimedJob] = []
    while found := ring_and_claim(database, session_id, worker):
        claimed += found
        finish_messages(database)
    return claimed


def claim(database: Database, ids: Sequence[str], session_id: str, worker: str) -> list[ClaimedJob]:
    """Those of the jobs or shards that wait, rung for this worker in one message and claimed."""
    message_id = new_id("msg")
    message = {"id": message_id, "worker": worker, "priority": "bulk", "num_jobs": len(ids)}

    def ring(uow: UnitOfWork) -> None:
        uow.conn.execute(sa.insert(messages), [{**message, "rung_at": uow.now}])
        uow.conn.execute(
            sa.update(jobs).where(jobs.c.id.in_(ids), jobs.c.state == JobState.QUEUED).values(message_id=message_id)
        )

    database.write(ring)
    return database.write(lambda uow: uow.attempts.claim(message_id, session_id=session_id, worker=worker))


def done(job: ClaimedJob, *, errors: Sequence[int] = ()) -> Completion:
    """A result with one float for each input, and item errors for some."""
    tokens = [7] * job.num_inputs
    summary: JsonObject = {
        "shape": [job.num_inputs, 1],
        "model": "tiny:1",
        "dtype": "float32",
        "engine": "torch",
        "tokens": tokens,
        "truncated": [],
        "errors": {str(index): ERROR for index in errors},
    }
    data = b"\0\0\0\0" * job.num_inputs
    digest = hashlib.sha256(f"{job.id}:{job.attempt}".encode()).hexdigest()
    return Completion(job.id, job.attempt, summary, digest, len(data), sum(tokens), {"forward_s": 0.1}, data=data)


def complete(database: Database, claimed: Sequence[ClaimedJob]) -> list[str]:
    """Complete these in one go; the ids that were recorded."""
    return database.write(lambda uow: uow.attempts.complete([done(job) for job in claimed], worker=WORKER))


def fail(database: Database, claimed: Sequence[ClaimedJob], error: JsonObject = ERROR) -> list[str]:
    """Fail these for good; the ids that were recorded."""
    failures = [Failure(job.id, job.attempt, error) for job in claimed]
    return database.write(lambda uow: uow.attempts.fail(failures, max_retries=0, worker=WORKER))


def look(database: Database, job: JobRecord) -> JobRecord:
    """The job as its owner sees it now."""
    return database.read(lambda uow: uow.jobs.get(job.id, job.project_id))


def events_of(database: Database, job: JobRecord) -> list[EventRecord]:
    """All events of the job; there are no gaps, and the job knows the last."""
    found = database.read(lambda uow: uow.events.after(job.id, 0))
    assert [event.seq for event in found] == list(range(1, look(database, job).event_seq + 1))
    return found


def reasons_of(database: Database, job: JobRecord) -> list[str]:
    """Why the job moved, move for move."""
    return [event.data["reason"] for event in events_of(database, job) if event.type == "state"]


def states_of_shards(database: Database, job: JobRecord) -> list[JobState]:
    """The state of each shard, by number."""
    return [shard.state for shard in database.read(lambda uow: uow.shards.page(job.id, limit=1_000))]


def num_open(database: Database, job: JobRecord) -> int:
    """How many shards the job waits for, as it counts them."""
    query = sa.select(jobs.c.num_open_shards).where(jobs.c.id == job.id)
    return database.read(lambda uow: int(uow.conn.execute(query).scalar_one()))


def outcomes_of(database: Database, job_id: str) -> list[str | None]:
    """How each attempt at a job or shard ended."""
    query = sa.select(attempts.c.outcome).where(attempts.c.job_id == job_id).order_by(attempts.c.attempt)
    return list(database.read(lambda uow: uow.conn.execute(query).scalars().all()))
