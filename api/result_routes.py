"""`/v1/jobs/{id}/result`: the result in the format that the Accept header asks for, streamed when it is large."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from api import openapi_parts as docs
from api.accept import choose_format
from api.database import run_sized
from api.job_routes import check_job_id, json_response
from api.services import CallerDep, Services, ServicesDep
from api.stored_items import JSON, StoredItems
from api.stored_results import STORED, plain_result, stored_bytes
from ondol.contract.errors import Conflict
from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState
from ondol.sql.records import JobRecord, ResultRecord
from ondol.sql.unit_of_work import UnitOfWork

WHOLE_BYTES = 128 * 1024
"""A result of at most so many bytes is sent in one piece."""

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get("/{job_id}/result", responses=docs.RESULT_RESPONSES)
async def get_result(job_id: str, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """The result of a job that succeeded; 409 while it has none.

    Items are in input order. `application/x-npy` holds embeddings with one vector for every input; of anything else
    the answer is 406.
    """
    check_job_id(job_id)
    job, record = await services.database.read(lambda uow: _find(uow, job_id, caller.project_id))
    if job.kind not in STORED:
        choose_format(request.headers.get("accept"), [JSON])
        return json_response(plain_result(job.kind, record))
    media_type = choose_format(request.headers.get("accept"), STORED[job.kind].FORMATS)
    stored = await load_result(services, job.kind, record)
    pieces = stored.pieces(media_type)
    if stored.size_bytes > WHOLE_BYTES:
        return StreamingResponse(pieces, media_type=media_type)
    return Response(await asyncio.to_thread(_join, pieces), media_type=media_type)


async def load_result(services: Services, kind: JobKind, record: ResultRecord) -> StoredItems:
    """The stored result of an inference job, from SQL or from its blob.

    ModelStoreError if the blob is damaged or away, or if data and summary do not fit each other.
    """
    if record.data is not None:
        found = record.data
    else:
        found = await asyncio.to_thread(lambda: stored_bytes(services.blobs, record))
    return await run_sized(len(found), lambda: STORED[kind].read(record.summary, found))


def _find(uow: UnitOfWork, job_id: str, project_id: str) -> tuple[JobRecord, ResultRecord]:
    job = uow.jobs.get(job_id, project_id)
    if job.state is JobState.FAILED and job.error is not None:
        raise Conflict(f"job {job_id} failed: {job.error.get('message')}", code="job_has_no_result")
    record = uow.results.get(job_id) if job.state is JobState.SUCCEEDED else None
    if record is None:
        raise Conflict(f"job {job_id} is {job.state}; only a job that succeeded has a result", code="job_has_no_result")
    return job, record


def _join(pieces: Iterator[bytes]) -> bytes:
    return b"".join(pieces)
