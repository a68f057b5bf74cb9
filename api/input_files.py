"""Files whose rows are the inputs of a job: there when it is accepted, and held until its shards are planned."""

from __future__ import annotations

from collections.abc import Sequence

from api.database import AsyncDatabase
from ondol.contract.errors import FileNotFound, InvalidPayload, OndolError
from ondol.contract.files import check_file_id
from ondol.contract.jobs import ParsedJob
from ondol.sql.files import FileRecord
from ondol.sql.records import NewJob
from ondol.sql.unit_of_work import UnitOfWork

Files = dict[str, FileRecord | OndolError]
"""By file id: the file, or why no job can be made of it."""


async def find_input_files(database: AsyncDatabase, parsed: Sequence[ParsedJob | OndolError], project_id: str) -> Files:
    """The input files that these jobs name; without any, nothing is read."""
    wanted = {job.request.input_file for job in parsed if isinstance(job, ParsedJob)} - {None}
    if not wanted:
        return {}
    return await database.read(lambda uow: {name: _find(uow, name, project_id) for name in wanted if name is not None})


def hold_input_files(uow: UnitOfWork, jobs: Sequence[NewJob]) -> None:
    """Keep the input files of these jobs from being deleted before the jobs are recorded.

    InvalidPayload if one was deleted or has expired since it was looked for.
    """
    for job in jobs:
        if job.input_file_id is not None:
            try:
                uow.files.hold(job.input_file_id, job.project_id)
            except FileNotFound as exc:
                raise _refusal(exc) from exc


def _find(uow: UnitOfWork, file_id: str, project_id: str) -> FileRecord | OndolError:
    try:
        return uow.files.get(check_file_id(file_id), project_id)
    except FileNotFound as exc:
        return _refusal(exc)


def _refusal(error: FileNotFound) -> InvalidPayload:
    """A file that is not there is the request's mistake, in the field that names it."""
    return InvalidPayload(error.message, param="input_file", code=error.code)
