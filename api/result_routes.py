"""`/v1/jobs/{id}/result`: the result in the format that the Accept header asks for, streamed when it is large."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from api import openapi_parts as docs
from api.accept import choose_format
from api.job_routes import check_job_id, json_response
from api.result_parts import ResultPart, find_sample, read_parts, whole_part
from api.result_writers import ResultFacts, ResultWriter, make_writer, write_pieces
from api.services import CallerDep, Services, ServicesDep
from api.stored_items import JSON, PARQUET, StoredItems
from api.stored_results import STORED, plain_result, stored_bytes
from api.threads import compute, in_store, run_sized
from ondol.contract.errors import Conflict
from ondol.contract.kinds import JobKind
from ondol.contract.states import TERMINAL, JobState
from ondol.sql.purging import Part
from ondol.sql.records import JobRecord, ResultRecord
from ondol.sql.unit_of_work import UnitOfWork

NUM_ERRORS = "ondol-num-errors"
"""The header that says how many inputs have an error in place of an output; only of a job that succeeded."""
WHOLE_BYTES = 128 * 1024
"""A result of at most so many bytes is sent in one piece."""

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get("/{job_id}/result", responses=docs.RESULT_RESPONSES)
async def get_result(
    job_id: str,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    partial: Annotated[
        bool, Query(description="Of a job that runs as shards: what is done now; the rest are errors `not_done`.")
    ] = False,
) -> Response:
    """The result of a job that succeeded; 409 while it has none.

    Items are in input order. A job of many inputs that failed or was cancelled gives what was done; the other items are
    errors. `application/x-npy` holds embeddings with one vector for every input; of anything else the answer is 406.
    """
    check_job_id(job_id)
    job, record = await services.database.read(lambda uow: _find(uow, job_id, caller.project_id, partial=partial))
    accept = request.headers.get("accept")
    if job.kind not in STORED:
        choose_format(accept, [JSON])
        assert record is not None
        return json_response(plain_result(job.kind, record))
    media_type = choose_format(accept, STORED[job.kind].FORMATS)
    if job.is_sharded:
        return await _sharded(services, job, record, media_type)
    assert record is not None
    return await _whole(services, job, record, media_type)


async def load_result(services: Services, kind: JobKind, record: ResultRecord) -> StoredItems:
    """The stored result of an inference job without shards, from SQL or from its blob.

    ModelStoreError if the blob is damaged or away, or if data and summary do not fit each other.
    """
    if record.data is not None:
        found = record.data
    else:
        found = await in_store(stored_bytes, services.blobs, record)
    return await run_sized(len(found), lambda: STORED[kind].read(record.summary, found))


async def _whole(services: Services, job: JobRecord, record: ResultRecord, media_type: str) -> Response:
    stored = await load_result(services, job.kind, record)
    facts = ResultFacts(job.kind, len(stored), job.model_ref, record.summary, stored)
    writer = make_writer(media_type, facts)
    pieces = write_pieces(writer, [whole_part(stored)])
    headers = _headers(writer, len(record.summary["errors"]))
    if stored.size_bytes > WHOLE_BYTES:
        return StreamingResponse(pieces, headers=headers, media_type=media_type)
    whole = await compute(lambda: b"".join(pieces))
    return Response(whole, headers={NUM_ERRORS: headers[NUM_ERRORS]}, media_type=media_type)


async def _sharded(services: Services, job: JobRecord, record: ResultRecord | None, media_type: str) -> Response:
    """The parts, one after the other. A blob that is damaged behind the first part breaks the transfer off."""
    rest = read_parts(services, job)
    first = await anext(rest)
    sample = first.stored
    if sample is None and media_type == PARQUET:
        sample = await find_sample(services, job)
    has_ids = first.ids is not None or (sample is not None and sample.summary.get("ids") is not None)
    summary = None if record is None else record.summary
    writer = make_writer(media_type, ResultFacts(job.kind, job.num_inputs, job.model_ref, summary, sample, has_ids))
    pieces = _stream(writer, first, rest)
    begun = await anext(pieces) + await anext(pieces)  # what cannot be written is told before the first byte
    headers = _headers(writer, None if summary is None else summary["num_errors"])
    return StreamingResponse(_behind(begun, pieces), headers=headers, media_type=media_type)


async def _stream(writer: ResultWriter, first: ResultPart, rest: AsyncIterator[ResultPart]) -> AsyncIterator[bytes]:
    yield writer.begin()
    part: ResultPart | None = first
    while part is not None:
        pieces = writer.part(part)
        while (piece := await compute(next, pieces, None)) is not None:
            yield piece
        part = await anext(rest, None)
    yield await compute(writer.end)


async def _behind(begun: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield begun
    async for piece in pieces:
        yield piece


def _headers(writer: ResultWriter, num_errors: int | None) -> dict[str, str]:
    known = {"content-length": writer.size_bytes, NUM_ERRORS: num_errors}
    return {name: str(number) for name, number in known.items() if number is not None}


def _find(uow: UnitOfWork, job_id: str, project_id: str, *, partial: bool) -> tuple[JobRecord, ResultRecord | None]:
    """The job with its result; without one only if it has shards and has ended, or is to be shown as it is."""
    job = uow.jobs.get(job_id, project_id)
    record = uow.results.get(job_id) if job.state is JobState.SUCCEEDED else None
    if record is None and (job.is_sharded or job.state is JobState.SUCCEEDED):
        uow.purging.check_part(job_id, Part.RESULTS)
    if record is not None or (job.is_sharded and (partial or job.state in TERMINAL)):
        return job, record
    if job.state is JobState.FAILED and job.error is not None:
        raise Conflict(f"job {job_id} failed: {job.error.get('message')}", code="job_has_no_result")
    raise Conflict(f"job {job_id} is {job.state}; only a job that succeeded has a result", code="job_has_no_result")
