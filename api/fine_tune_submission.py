"""Accepting fine-tune jobs: `model` is the base that is trained on, and `options` are complete with defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from api.auth import Caller
from api.database import AsyncDatabase
from api.model_lookup import Served
from api.new_job import new_job
from ondol.contract.errors import FileNotFound, InvalidPayload, OndolError
from ondol.contract.jobs import ParsedJob
from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState
from ondol.sql.records import NewJob
from ondol.sql.unit_of_work import UnitOfWork

_FILE_OPTIONS = ("train_file", "validation_file")


def build_fine_tune(job: ParsedJob, served: Served, caller: Caller) -> NewJob:
    """The fine-tune of the base `served`, whose files are checked first; InvalidPayload for what the base rules out."""
    max_length, positions = job.options["max_length"], served.spec.max_length
    if max_length is not None and max_length > positions:
        raise InvalidPayload(f"the base takes at most {positions} tokens", param="options.max_length")
    return replace(new_job(job, served, caller), state=JobState.VALIDATING_FILES)


async def without_missing_files(
    database: AsyncDatabase, outcomes: Sequence[NewJob | OndolError], project_id: str
) -> list[NewJob | OndolError]:
    """The outcomes, in which fine-tunes that name a file which is not there are refused."""
    if not any(_is_fine_tune(one) for one in outcomes):
        return list(outcomes)

    def look(uow: UnitOfWork) -> list[NewJob | OndolError]:
        return [_missing(uow, one, project_id) or one if isinstance(one, NewJob) else one for one in outcomes]

    return await database.read(look)


def hold_training_files(uow: UnitOfWork, jobs: Sequence[NewJob]) -> None:
    """Keep the files of these jobs from being deleted before the jobs are recorded; FileNotFound if one just was."""
    for job in jobs:
        for _, file_id in _files_of(job):
            uow.files.hold(file_id, job.project_id)


def _missing(uow: UnitOfWork, job: NewJob, project_id: str) -> OndolError | None:
    for name, file_id in _files_of(job):
        try:
            uow.files.get(file_id, project_id)
        except FileNotFound as exc:
            return FileNotFound(exc.message, param=f"options.{name}")
    return None


def _files_of(job: NewJob) -> list[tuple[str, str]]:
    options: dict[str, Any] = job.options if job.kind is JobKind.FINE_TUNE else {}
    return [(name, options[name]) for name in _FILE_OPTIONS if options.get(name) is not None]


def _is_fine_tune(outcome: NewJob | OndolError) -> bool:
    return isinstance(outcome, NewJob) and outcome.kind is JobKind.FINE_TUNE
