"""Batches in SQL, on both databases: pages of them alone, and files that are recorded once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from ondol.contract.errors import JobNotFound
from ondol.contract.ids import new_id
from ondol.sql.database import Database
from ondol.sql.files import NewFile
from ondol.sql.records import JsonObject, NewJob
from tests.job_fixtures import new_job, project_of

pytestmark = pytest.mark.integration

BATCH = {"endpoint": "/v1/embeddings", "completion_window": "24h", "num_lines": 2}


def _ended_batch(database: Database) -> tuple[NewJob, float]:
    """A batch that was cancelled, and when."""
    project_id = project_of(database)
    job = replace(new_job(project_id), batch=BATCH)
    database.write(lambda uow: uow.jobs.add_all([job]))
    ended = database.write(lambda uow: uow.jobs.cancel(job.id, project_id))
    assert ended.finished_at is not None
    return job, ended.finished_at


def _new_file(job: NewJob, file_id: str) -> NewFile:
    return NewFile(file_id, job.project_id, "out.jsonl", "batch_output", 3, "0" * 64)


def test_a_page_holds_batches_alone_newest_first(database: Database) -> None:
    project_id = project_of(database)
    made = [replace(new_job(project_id), batch=BATCH if number % 2 else None) for number in range(8)]
    database.write(lambda uow: uow.jobs.add_all(made))
    batches = [job.id for job in made if job.batch][::-1]
    page, has_more = database.read(lambda uow: uow.batches.page(project_id, limit=3))
    assert ([job.id for job in page], has_more) == (batches[:3], True)
    assert page[0].batch == BATCH
    page, has_more = database.read(lambda uow: uow.batches.page(project_id, after=batches[2]))
    assert ([job.id for job in page], has_more) == (batches[3:], False)
    assert database.read(lambda uow: uow.batches.page("proj_other")) == ([], False)


def test_files_are_recorded_once_whoever_comes_second(database: Database) -> None:
    job, ended_at = _ended_batch(database)
    file = _new_file(job, new_id("file"))

    def settle(number: int) -> JsonObject | None:
        changes = {"output_file_id": file.id, "writer": number}
        return database.write(
            lambda uow: uow.batches.set_files(job.id, finished_at=ended_at, changes=changes, files=[file])
        )

    with ThreadPoolExecutor(4) as threads:
        told = list(threads.map(settle, range(4)))
    assert None not in told and len({batch["writer"] for batch in told if batch}) == 1
    batch = database.read(lambda uow: uow.jobs.get(job.id, job.project_id)).batch
    assert batch == told[0] and batch is not None and batch["num_lines"] == 2
    assert database.read(lambda uow: uow.files.get(file.id, job.project_id)).purpose == "batch_output"


def test_nothing_is_recorded_of_a_batch_that_is_gone_or_ended_otherwise(database: Database) -> None:
    job, ended_at = _ended_batch(database)
    file = _new_file(job, new_id("file"))

    def settle(at: float) -> JsonObject | None:
        return database.write(lambda uow: uow.batches.set_files(job.id, finished_at=at, changes={}, files=[file]))

    assert settle(ended_at - 1) is None
    database.write(lambda uow: uow.jobs.delete(job.id, job.project_id))
    assert settle(ended_at) is None
    assert database.read(lambda uow: uow.files.existing([file.id])) == set()
    with pytest.raises(JobNotFound):
        database.read(lambda uow: uow.jobs.get(job.id, job.project_id))
