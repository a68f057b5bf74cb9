"""`/v1/jobs/{id}/result`: the result in the format that the Accept header asks for, streamed when it is large."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from api import openapi_parts as docs
from api.accept import choose_format
from api.job_routes import check_job_id, json_response
from api.services import CallerDep, Services, ServicesDep
from api.vectors import StoredVectors
from ondol.contract.errors import Conflict
from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState
from ondol.sql.records import JobRecord, ResultRecord
from ondol.sql.unit_of_work import UnitOfWork

JSON, NDJSON, NPY = "application/json", "application/x-ndjson", "application/x-npy"
WHOLE_BYTES = 128 * 1024
"""A result of at most so many bytes is sent in one piece."""

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get("/{job_id}/result", responses=docs.RESULT_RESPONSES)
async def get_result(job_id: str, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """The result of a job that succeeded; 409 while it has none.

    Items are in input order. `application/x-npy` needs one vector for every input, else the answer is 406.
    """
    check_job_id(job_id)
    job, record = await services.database.read(lambda uow: _find(uow, job_id, caller.project_id))
    if job.kind is not JobKind.EMBEDDING:
        choose_format(request.headers.get("accept"), [JSON])
        return json_response({"object": f"{job.kind}.result"} | record.summary["result"])
    media_type = choose_format(request.headers.get("accept"), [JSON, NDJSON, NPY])
    stored = await load_vectors(services, record)
    pieces = {JSON: stored.as_json, NDJSON: stored.as_ndjson, NPY: stored.as_npy}[media_type]()
    if stored.rows.nbytes > WHOLE_BYTES:
        return StreamingResponse(pieces, media_type=media_type)
    return Response(await asyncio.to_thread(_join, pieces), media_type=media_type)


async def load_vectors(services: Services, record: ResultRecord) -> StoredVectors:
    """The vectors of a stored result, from SQL or from its blob; ModelStoreError if the blob is damaged or away."""
    data, path = record.data, record.blob_path
    if data is None and path is not None:
        data = await asyncio.to_thread(lambda: services.blobs.read(path, sha256=record.sha256))
    return StoredVectors.read(record.summary, data or b"")


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
