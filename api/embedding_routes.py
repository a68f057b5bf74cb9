"""`POST /v1/embeddings`: a call, answered while the client waits; with `store`, a job that is waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from api import openapi_parts as docs
from api.auth import Caller
from api.calls import send_call
from api.database import run_sized
from api.embedding_call import EmbeddingCall, answer_json, parse_call
from api.errors import error_from_record
from api.idempotency import Answer, KeyedRequest, Make, answer_once
from api.job_json import job_json
from api.model_lookup import Served
from api.request_body import JsonBody, idempotency_key, read_json
from api.result_routes import load_vectors
from api.services import CallerDep, Services, ServicesDep
from api.submission import admit, record_jobs
from api.usage_meter import Usage
from api.vectors import Array
from api.waiting import wait_for_end
from ondol.broker.calls import CallRequest
from ondol.contract.errors import DeadlineExceeded
from ondol.contract.ids import new_job_id
from ondol.contract.inference_checks import estimate_tokens
from ondol.contract.jobs import dump_inputs
from ondol.contract.kinds import JobKind
from ondol.contract.payloads import EmbeddingOptions
from ondol.contract.states import TERMINAL, JobState
from ondol.sql.records import JobRecord, NewJob, ResultRecord
from ondol.sql.unit_of_work import UnitOfWork

T = TypeVar("T")
BYTES_A_NUMBER = 4

router = APIRouter(tags=["embeddings"])


@dataclass(frozen=True, slots=True)
class Embedded:
    """What came back for a call: float32 [N, H] (or one [T_i, H] an input), errors by index, seconds by stage."""

    vectors: Array | Sequence[Array]
    num_tokens: int
    errors: Mapping[int, Mapping[str, Any]]
    timings: Mapping[str, float]
    job_id: str | None = None


@router.post("/v1/embeddings", openapi_extra=docs.json_body("EmbeddingCallRequest"), responses=docs.CALL_RESPONSES)
async def create_embeddings(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """OpenAI's embeddings: text, texts, token ids or lists of them. All or nothing; unknown fields are ignored."""
    begun = time.perf_counter()
    body = await read_json(request, max_bytes=services.max_body_bytes)
    call = await run_sized(len(body.raw), lambda: parse_call(body.value, services.limits))
    served = await services.models.for_call(call.model, caller.project_id)
    options = await run_sized(len(body.raw), lambda: call.options_for(served.spec))
    work = _Work(services, caller, call, served, options)
    made = work.embed_as_job(request, body) if call.is_stored else work.embed()
    done = await _unless_client_leaves(request, made)
    if done.errors:
        index = min(done.errors)
        raise error_from_record(done.errors[index], param=f"input[{index}]")
    num_bytes = sum(vector.nbytes for vector in done.vectors)
    content = await run_sized(
        num_bytes // BYTES_A_NUMBER,
        lambda: answer_json(done.vectors, encoding=call.encoding, model=served.version.ref, num_tokens=done.num_tokens),
    )
    return Response(content, media_type="application/json", headers=_headers(done, time.perf_counter() - begun))


@dataclass(frozen=True, slots=True)
class _Work:
    """One call with all that was found out about it."""

    services: Services
    caller: Caller
    call: EmbeddingCall
    served: Served
    options: EmbeddingOptions

    async def embed(self) -> Embedded:
        """Send the call to a worker and count what it used."""
        request = CallRequest(
            version_id=self.served.version.id,
            model_ref=self.served.version.ref,
            kind=JobKind.EMBEDDING,
            options=self.options.model_dump(mode="json"),
            inputs=self.call.inputs,
            deadline_at=time.time() + self.services.settings.call_timeout_s,
            priority=self.call.priority,
        )
        reply = await send_call(self.services.workers, self.services.sender, self.served.version, request)
        num_tokens = sum(reply.tokens)
        usage = Usage(num_calls=1, num_inputs=len(self.call.inputs), num_tokens=num_tokens)
        self.services.usage.add(self.caller.project_id, self.served.version.ref, usage)
        return Embedded(reply.vectors, num_tokens, reply.errors, reply.timings)

    async def embed_as_job(self, request: Request, body: JsonBody) -> Embedded:
        """Record the call as a job, wait for it, and give its result; DeadlineExceeded names the job."""
        until = time.monotonic() + self.services.settings.call_timeout_s
        key = idempotency_key(request)
        keyed = KeyedRequest(self.caller.project_id, key, body.digest(request.url.path)) if key is not None else None
        answer = await answer_once(self.services, keyed, self._prepare_job)
        job_id = orjson.loads(answer.body)["id"]
        job = await wait_for_end(self.services, self.caller.project_id, job_id, until=until)
        if job.state not in TERMINAL:
            raise DeadlineExceeded(f"job {job_id} has not ended yet; it goes on running, ask for it by its id")
        return await self._result_of(job)

    async def _prepare_job(self) -> Make:
        estimate = estimate_tokens(self.call.inputs, self.call.num_bytes, self.options, self.served.spec)
        job = NewJob(
            id=new_job_id(),
            project_id=self.caller.project_id,
            kind=JobKind.EMBEDDING,
            priority=self.call.priority,
            payload=dump_inputs(self.call.inputs),
            options=self.options.model_dump(mode="json"),
            num_inputs=len(self.call.inputs),
            estimated_tokens=estimate,
            version_id=self.served.version.id,
            model_ref=self.served.version.ref,
            deadline_s=self.services.settings.call_timeout_s,
        )
        await admit(self.services, [job])
        return lambda uow: self._record(uow, job)

    def _record(self, uow: UnitOfWork, job: NewJob) -> Answer:
        [record] = record_jobs(uow, self.services, [job])
        return Answer(202, orjson.dumps(job_json(record)))

    async def _result_of(self, job: JobRecord) -> Embedded:
        if job.state is not JobState.SUCCEEDED:
            raise error_from_record(job.error or {"code": "conflict", "message": f"job {job.id} was {job.state}"})
        record = await self.services.database.read(lambda uow: _result(uow, job.id))
        stored = await load_vectors(self.services, record)
        return Embedded(
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


async def _unless_client_leaves(request: Request, made: Coroutine[Any, Any, T]) -> T:
    """What `made` gives; when the client hangs up first, `made` is cancelled, which strikes the call out."""
    work = asyncio.create_task(made)
    leaving = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait([work, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        leaving.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _headers(done: Embedded, total_s: float) -> dict[str, str]:
    timings = done.timings
    headers = {
        "x-queue-time": _milliseconds(timings.get("queue_wait_s", 0.0)),
        "x-tokenization-time": _milliseconds(timings.get("tokenize_s", 0.0)),
        "x-inference-time": _milliseconds(timings.get("forward_s", 0.0)),
        "x-total-time": _milliseconds(total_s),
    }
    return headers if done.job_id is None else headers | {"x-ondol-job-id": done.job_id}


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3f}"
