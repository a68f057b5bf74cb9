"""`POST /v1/embeddings`: a call, answered while the client waits; with `store`, a job that is waited for."""

from __future__ import annotations

import time
from contextlib import ExitStack

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from api import openapi_parts as docs
from api.admission import Reservation
from api.embedding_call import answer_json, parse_call
from api.errors import error_from_record
from api.idempotency import Answer, KeyedRequest, Make, answer_once
from api.inference_call import InferenceCall, Inferred, unless_client_leaves
from api.job_json import job_json
from api.request_body import JsonBody, idempotency_key, read_json
from api.result_routes import load_result
from api.services import CallerDep, Services, ServicesDep
from api.submission import admit, record_jobs
from api.threads import run_sized
from api.vectors import StoredVectors
from api.waiting import wait_for_end
from ondol.contract.errors import DeadlineExceeded
from ondol.contract.kinds import JobKind
from ondol.contract.states import TERMINAL, JobState
from ondol.sql.records import JobRecord, NewJob, ResultRecord
from ondol.sql.unit_of_work import UnitOfWork

BYTES_A_NUMBER = 4

router = APIRouter(tags=["embeddings"])


@router.post("/v1/embeddings", openapi_extra=docs.json_body("EmbeddingCallRequest"), responses=docs.CALL_RESPONSES)
async def create_embeddings(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """OpenAI's embeddings: text, texts, token ids or lists of them. All or nothing; unknown fields are ignored."""
    begun = time.perf_counter()
    body = await read_json(request, services.bodies)
    asked = await run_sized(len(body.raw), lambda: parse_call(body.value, services.limits))
    served = await services.models.for_call(asked.model, caller.project_id)
    options = await run_sized(len(body.raw), lambda: asked.options_for(served.spec))
    call = InferenceCall(
        services, caller, served, JobKind.EMBEDDING, options, asked.inputs, asked.num_bytes, asked.priority
    )
    done = await unless_client_leaves(request, _run_as_job(call, request, body) if asked.is_stored else call.run())
    done.raise_item_error("input")
    num_bytes = sum(vector.nbytes for vector in done.vectors)
    content = await run_sized(
        num_bytes // BYTES_A_NUMBER,
        lambda: answer_json(
            done.vectors, encoding=asked.encoding, model=served.version.ref, num_tokens=done.num_tokens
        ),
    )
    return Response(content, media_type="application/json", headers=done.headers(time.perf_counter() - begun))


async def _run_as_job(call: InferenceCall, request: Request, body: JsonBody) -> Inferred:
    """Record the call as a job, wait for it, and give its result; DeadlineExceeded names the job."""
    services, project_id = call.services, call.caller.project_id
    until = time.monotonic() + services.settings.call_timeout_s
    key = idempotency_key(request)
    keyed = KeyedRequest(project_id, key, body.digest(request.url.path)) if key is not None else None
    answer = await answer_once(services, keyed, lambda held: _prepare_job(call, held))
    job_id = orjson.loads(answer.body)["id"]
    job = await wait_for_end(services, project_id, job_id, until=until)
    if job.state not in TERMINAL:
        raise DeadlineExceeded(f"job {job_id} has not ended yet; it goes on running, ask for it by its id")
    return await _result_of(services, job)


async def _prepare_job(call: InferenceCall, held: ExitStack) -> Make:
    job = await run_sized(call.num_bytes, call.as_job)
    room = held.enter_context(await admit(call.services, [job]))
    return lambda uow: _record(uow, call.services, job, room)


def _record(uow: UnitOfWork, services: Services, job: NewJob, room: Reservation) -> Answer:
    [record] = record_jobs(uow, services, [job], room)
    return Answer(202, orjson.dumps(job_json(record)))


async def _result_of(services: Services, job: JobRecord) -> Inferred:
    if job.state is not JobState.SUCCEEDED:
        raise error_from_record(job.error or {"code": "conflict", "message": f"job {job.id} was {job.state}"})
    record = await services.database.read(lambda uow: _result(uow, job.id))
    stored = await load_result(services, job.kind, record)
    assert isinstance(stored, StoredVectors), "the result of an embedding job is vectors"
    return Inferred(
        vectors=[stored.vector(i) for i in range(len(stored))],
        num_tokens=record.summary["num_tokens"],
        errors={int(i): error for i, error in record.summary["errors"].items()},
        timings=job.timings or {},
        job_id=job.id,
    )


def _result(uow: UnitOfWork, job_id: str) -> ResultRecord:
    record = uow.results.get(job_id)
    assert record is not None, "a succeeded job has its result by the same transaction"
    return record
