"""Handlers whose errors quote what a user sent: `python -m tests.metrics.quoting_errors json DATABASE_URL WORD`.

Runs them over a real database and logs to standard error as a node does; prints the errors that the jobs were given.
"""

from __future__ import annotations

import json
import sys
import threading
from types import SimpleNamespace
from typing import Any, cast

from ondol.contract.errors import InvalidPayload
from ondol.contract.kinds import JobKind
from ondol.logs import configure_logging
from ondol.metrics.roles import TrainerMetrics, WorkerMetrics
from ondol.settings import LogFormat
from ondol.sql.database import Database
from ondol.sql.records import ClaimedTraining, Completion
from tests.job_fixtures import (
    finish_messages,
    new_fine_tune,
    open_database,
    open_session,
    open_trainer,
    project_of,
    ring_and_claim,
    ring_and_claim_training,
    submit,
    validate,
)
from workers.handler import _Record, _store
from workers.training.node import _conclude, _fail
from workers.training.supervisor import Ended, Ending

TOO_LARGE_FOR_SQL = 2**70


def refused_result(database: Database, word: str) -> str:
    """A result that quotes the word and holds a number that SQL refuses; the job's id."""
    submit(database, 1)
    session_id = open_session(database)
    [job] = ring_and_claim(database, session_id)
    deps: Any = SimpleNamespace(
        database=database,
        session=SimpleNamespace(current=lambda: session_id),
        wake=SimpleNamespace(wake=lambda _, has_notices: has_notices),
        metrics=WorkerMetrics(),
        worker="cpu0@test",
        max_attempts=1,
    )
    bad = Completion(job.id, job.attempt, {"labels": [word]}, "0" * 64, 4, TOO_LARGE_FOR_SQL, {}, data=word.encode())
    _store(_Record(JobKind.EMBEDDING, [bad]), session_id, deps)
    return job.id


def claimed_training(database: Database, session_id: str) -> ClaimedTraining:
    """The check of a new fine-tune."""
    project_id = project_of(database)
    database.write(lambda uow: uow.jobs.add_all([new_fine_tune(project_id)]))
    [job] = ring_and_claim_training(database, session_id)
    return job


def quoting_fine_tunes(database: Database, word: str) -> tuple[str, str]:
    """A check that refuses a row and quotes it, and a trainer whose last lines do; the jobs' ids."""
    session_id = open_trainer(database)
    deps: Any = SimpleNamespace(
        database=database,
        stopping=threading.Event(),
        worker="train-cpu0@test",
        limits=SimpleNamespace(max_attempts=1),
        metrics=TrainerMetrics(),
    )
    refused = claimed_training(database, session_id)
    _fail(refused, InvalidPayload(f"row 3: '{word}' is no label of the training", param="train_file"), deps)
    finish_messages(database)
    checked = claimed_training(database, session_id)
    validate(database, checked)
    [dying] = ring_and_claim_training(database, session_id)
    ended = Ended(Ending.DIED, reason=f"the trainer ended with exit code 1; its last lines: ValueError: {word}")
    _conclude(dying, cast(Any, None), ended, {}, deps)
    return refused.id, dying.id


def main(form: LogFormat, url: str, word: str) -> None:
    """Print a list of three texts: each job's error, and what the dead trainer's job says in its events."""
    database = open_database(url)
    configure_logging("debug", form, process="worker-test")
    unrecorded = refused_result(database, word)
    refused, dying = quoting_fine_tunes(database, word)
    project_id = project_of(database)
    jobs = database.read(lambda uow: [uow.jobs.get(job_id, project_id) for job_id in (unrecorded, refused)])
    events = database.read(lambda uow: uow.events.after(dying, 0, limit=100))
    print(json.dumps([*[str(job.error) for job in jobs], str(events)]))
    database.close()


if __name__ == "__main__":
    main(cast(LogFormat, sys.argv[1]), sys.argv[2], sys.argv[3])
