"""`/v1/batches`: OpenAI's routes for batches. The jobs are those of `/v1/jobs`, under the same ids."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api import batch_openapi as docs
from api.admission import Reservation
from api.auth import Caller
from api.batch_files import finish_soon
from api.batch_json import batch_json
from api.batch_request import (
    BatchFile,
    BatchRequest,
    in_their_words,
    job_body,
    job_payload,
    read_batch_file,
    read_batch_request,
)
from api.idempotency import Answer, KeyedRequest, Make, answer_once
from api.job_routes import change_once, check_job_id, json_answer, json_response
from api.request_body import idempotency_key, read_json
from api.services import CallerDep, Services, ServicesDep
from api.submission import Origin, admit, prepare, record_jobs
from api.threads import in_store
from ondol.contract.errors import FileNotFound, JobNotFound, OndolError
from ondol.contract.files import check_file_id
from ondol.sql.records import JobRecord, NewJob
from ondol.sql.unit_of_work import UnitOfWork

router = APIRouter(prefix="/v1/batches", tags=["batches for OpenAI's clients"])


@router.post("", openapi_extra=docs.CREATE_BODY, responses=docs.BATCH_RESPONSES)
async def create(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Submit a batch of embeddings. With an Idempotency-Key a repeated request gets the first answer again.

    The first line of the file that can be run says model and options; lines with others are errors of their own.
    """
    body = await read_json(request, services.bodies)

    async def prepare_job(held: ExitStack) -> Make:
        job = await _prepare(services, caller, read_batch_request(body.value), num_bytes=len(body.raw))
        room = held.enter_context(await admit(services, [job]))
        return lambda uow: _record(uow, services, job, room)

    key = idempotency_key(request)
    keyed = None if key is None else KeyedRequest(caller.project_id, key, body.digest(request.url.path))
    return json_answer(await answer_once(services, keyed, prepare_job))


@router.get("", responses=docs.BATCH_PAGE_RESPONSES)
async def list_batches(
    services: ServicesDep,
    caller: CallerDep,
    after: Annotated[str | None, Query(description="Begin behind this batch: the last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Most batches of a page.")] = 20,
) -> Response:
    """A page of batches, newest first."""
    cursor = check_job_id(after) if after is not None else None
    jobs, has_more = await services.database.read(
        lambda uow: uow.batches.page(caller.project_id, after=cursor, limit=limit)
    )
    finish_soon(services, jobs)
    data = [batch_json(job) for job in jobs]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return json_response({"object": "list", "data": data, **ends, "has_more": has_more})


@router.get("/{job_id}", responses=docs.BATCH_RESPONSES)
async def retrieve(job_id: str, services: ServicesDep, caller: CallerDep) -> Response:
    """One batch. When its job has ended, its output files are written; it is `finalizing` until they are there."""
    job = await services.database.read(lambda uow: _find(uow, job_id, caller.project_id))
    finish_soon(services, [job])
    return json_response(batch_json(job))


@router.post("/{job_id}/cancel", responses=docs.BATCH_RESPONSES)
async def cancel(job_id: str, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Cancel a batch that has not ended; 409 if it ended otherwise. What was done is in its output file."""

    def move(uow: UnitOfWork) -> dict[str, Any]:
        _find(uow, job_id, caller.project_id)
        uow.after_commit(lambda: services.wake.strike([job_id]))
        uow.after_commit(lambda: services.wake.wake([job_id]))
        return batch_json(uow.jobs.cancel(job_id, caller.project_id))

    return await change_once(request, services, caller, move)


async def _prepare(services: Services, caller: Caller, asked: BatchRequest, *, num_bytes: int) -> NewJob:
    """The checked job; nothing is stored."""
    file = await _read_file(services, caller, asked)
    try:
        served = await services.models.for_call(file.body["model"], caller.project_id)
    except OndolError as exc:
        exc.param = "model"
        raise in_their_words(exc, file.line) from exc
    wanted = job_body(asked, file, services.limits, truncate=served.spec.truncate or "error")
    [job] = await prepare(services, Origin(caller, num_bytes), [wanted])
    if isinstance(job, OndolError):
        raise in_their_words(job, file.line)
    batch: dict[str, Any] = {
        "endpoint": asked.endpoint,
        "completion_window": asked.completion_window,
        "num_lines": file.num_lines,
    }
    if asked.output_expires_after is not None:
        batch["output_expires_after_s"] = asked.output_expires_after.seconds
    return replace(job, payload=job_payload(file), batch=batch)


async def _read_file(services: Services, caller: Caller, asked: BatchRequest) -> BatchFile:
    """What the file's lines ask for; FileNotFound if the project has no such file."""
    file_id = asked.input_file_id

    def read() -> BatchFile:
        with services.files.open(file_id) as file:
            return read_batch_file(file)

    try:
        check_file_id(file_id)
        await services.database.read(lambda uow: uow.files.get(file_id, caller.project_id))
        return await in_store(read)
    except FileNotFound as exc:
        raise FileNotFound(exc.message, param="input_file_id") from exc


def _record(uow: UnitOfWork, services: Services, job: NewJob, room: Reservation) -> Answer:
    [record] = record_jobs(uow, services, [job], room)
    return Answer(200, orjson.dumps(batch_json(record)))


def _find(uow: UnitOfWork, job_id: str, project_id: str) -> JobRecord:
    """The batch, or JobNotFound: other jobs are not to be found here."""
    job = uow.jobs.get(check_job_id(job_id), project_id)
    if job.batch is None:
        raise JobNotFound(f"{job_id} is no batch; it is at /v1/jobs/{job_id}", param="id")
    return job
