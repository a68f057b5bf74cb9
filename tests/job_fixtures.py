"""Jobs and databases for tests of the SQL layer."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ondol.contract.ids import new_job_id
from ondol.contract.kinds import JobKind
from ondol.contract.states import Priority
from ondol.control.administration import upgrade_database
from ondol.sql.database import Database
from ondol.sql.records import ClaimedJob, Completion, JobRecord, NewJob
from ondol.sql.ringing import WindowLimits

LIMITS = WindowLimits()
LEASE_S = 6.0


def open_database(url: str) -> Database:
    """A migrated database with the default project."""
    upgrade_database(url)
    return Database(url)


def project_of(database: Database) -> str:
    """The default project's id."""
    return database.write(lambda uow: uow.keys.ensure_project())


def new_job(project_id: str, *, text: str = "the kettle is warm", priority: Priority = Priority.NORMAL) -> NewJob:
    """An embedding job of one text."""
    return NewJob(
        id=new_job_id(),
        project_id=project_id,
        kind=JobKind.EMBEDDING,
        priority=priority,
        payload=json.dumps([text]).encode(),
        options={},
        num_inputs=1,
        estimated_tokens=8,
        model_ref="tiny:1",
    )


def submit(database: Database, num: int, *, priority: Priority = Priority.NORMAL) -> list[JobRecord]:
    """`num` jobs of one text, recorded."""
    project_id = project_of(database)
    jobs = [new_job(project_id, priority=priority) for _ in range(num)]
    return database.write(lambda uow: uow.jobs.add_all(jobs))


def open_session(database: Database, worker: str = "cpu0@test", *, lease_s: float = LEASE_S) -> str:
    """A ready session of a worker."""

    session_id = database.write(
        lambda uow: uow.sessions.open(
            worker=worker, device="cpu:0", device_kind="cpu", host="test", pid=1, lease_s=lease_s
        )
    )
    assert database.write(lambda uow: uow.sessions.renew(session_id, lease_s=lease_s, is_ready=True, warm=[]))
    return session_id


def ring_and_claim(database: Database, session_id: str, worker: str = "cpu0@test") -> list[ClaimedJob]:
    """Everything that one round of ringing gives the worker, claimed."""
    claimed: list[ClaimedJob] = []
    for message in database.write(lambda uow: uow.ringing.choose(LIMITS)):
        if message.worker == worker:
            message_id = message.id
            claimed += database.write(
                lambda uow, m=message_id: uow.attempts.claim(m, session_id=session_id, worker=worker)  # type: ignore[misc]  # bound at definition
            )
    return claimed


def completions(claimed: Sequence[ClaimedJob]) -> list[Completion]:
    """A result for each."""
    return [
        Completion(job.id, job.attempt, {"shape": [1, 1]}, "0" * 64, 4, tokens=3, timings={}, data=b"\0\0\0\0")
        for job in claimed
    ]
