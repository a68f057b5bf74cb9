"""Jobs and databases for tests of the SQL layer."""

from __future__ import annotations

import json
from collections.abc import Sequence

import sqlalchemy as sa

from ondol.contract.ids import new_job_id
from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState, Priority
from ondol.control.administration import upgrade_database
from ondol.sql.database import Database
from ondol.sql.records import ClaimedJob, ClaimedTraining, Completion, JobRecord, NewJob
from ondol.sql.ringing import WindowLimits
from ondol.sql.sessions import TRAIN
from ondol.sql.tables import messages
from ondol.sql.unit_of_work import UnitOfWork

LIMITS = WindowLimits(message_jobs=64)
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


def open_session(
    database: Database, worker: str = "cpu0@test", *, lease_s: float = LEASE_S, warm: Sequence[str] = ()
) -> str:
    """A ready session of a worker."""

    session_id = database.write(
        lambda uow: uow.sessions.open(
            worker=worker, device="cpu:0", device_kind="cpu", host="test", pid=1, lease_s=lease_s
        )
    )
    assert database.write(lambda uow: uow.sessions.renew(session_id, lease_s=lease_s, is_ready=True, warm=warm))
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


TRAINER = "train-cpu0@test"
RESOLVED = {"max_steps": 12, "report": {}}


def new_fine_tune(project_id: str, *, priority: Priority = Priority.NORMAL, **options: object) -> NewJob:
    """A fine-tune whose files are to be validated; there are no such files."""
    return NewJob(
        id=new_job_id(),
        project_id=project_id,
        kind=JobKind.FINE_TUNE,
        priority=priority,
        payload=b"null",
        options={"output_name": "sentiment", "train_file": "file_" + "0" * 26, **options},
        num_inputs=0,
        estimated_tokens=0,
        version_id="ver_base",
        model_ref="tiny:1",
        state=JobState.VALIDATING_FILES,
    )


def open_trainer(database: Database, worker: str = TRAINER, *, lease_s: float = LEASE_S) -> str:
    """A ready session of a trainer node."""
    session_id = database.write(
        lambda uow: uow.sessions.open(
            worker=worker, device="cpu:0", device_kind="cpu", host="test", pid=1, lease_s=lease_s, role=TRAIN
        )
    )
    assert database.write(lambda uow: uow.sessions.renew(session_id, lease_s=lease_s, is_ready=True, warm=[]))
    return session_id


def ring_and_claim_training(database: Database, session_id: str, worker: str = TRAINER) -> list[ClaimedTraining]:
    """Every fine-tune that one round of ringing gives the trainer node, claimed."""
    claimed = []
    for message in database.write(lambda uow: uow.ringing.choose(LIMITS)):
        if message.worker == worker:
            found = database.write(
                lambda uow, m=message.id: uow.training.claim(m, session_id=session_id, worker=worker)  # type: ignore[misc]  # bound at definition
            )
            claimed += [found] if found is not None else []
    return claimed


def validate(database: Database, job: ClaimedTraining) -> None:
    """End a check well and forget its message, as the node does."""
    assert database.write(lambda uow: uow.training.validated(job.id, job.attempt, RESOLVED, worker=TRAINER))
    finish_messages(database)


def finish_messages(database: Database) -> None:
    """Forget every message, as handlers do in the end."""

    def finish(uow: UnitOfWork) -> None:
        for message_id in [row.id for row in uow.conn.execute(sa.select(messages.c.id))]:
            uow.ringing.finish(message_id)

    database.write(finish)
