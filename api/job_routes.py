"""`/v1/jobs`: submit, look, wait, list, cancel, retry, delete."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Annotated, Any

import orjson
import structlog
from fastapi import APIRouter, Query, Request
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.responses import Response

from api import openapi_parts as docs
from api.admission import Place, Reservation
from api.auth import Caller
from api.errors import error_object, status_of
from api.idempotency import Answer, KeyedRequest, Make, answer_once
from api.job_json import job_json
from api.job_search import find_jobs
from api.model_lookup import resolve_filter
from api.request_body import JsonBody, idempotency_key, read_json
from api.services import CallerDep, Services, ServicesDep
from api.submission import Origin, Outcome, admit, prepare, record_jobs
from api.threads import in_store
from api.waiting import wait_for_end
from ondol.contract.errors import JobNotFound, ModelStoreError, OndolError
from ondol.contract.jobs import validated
from ondol.contract.kinds import JobKind
from ondol.contract.model_ref import parse_model_ref
from ondol.contract.payloads import JobBatchRequest
from ondol.contract.states import JobState
from ondol.sql.job_pages import JobFilter
from ondol.sql.records import FreedBlobs, JobRecord, NewJob
from ondol.sql.unit_of_work import UnitOfWork

_JOB_ID = re.compile(r"job_[0-9a-z]{26}")
_MAX_POSITION = 10_000


class _JobIdConvertor(StringConvertor):
    """One part of an address, but not `batch`, which is a route of its own and answers POST alone."""

    regex = r"(?!batch$)[^/]+"


register_url_convertor("job_id", _JobIdConvertor())
router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
log = structlog.get_logger(__name__)


@router.post("", status_code=202, openapi_extra=docs.json_body("JobRequest"), responses=docs.job_responses(202))
async def submit_job(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Submit one job. With an Idempotency-Key a repeated request gets the first answer again."""
    body = await read_json(request, services.bodies)

    async def prepare_one(held: ExitStack) -> Make:
        [job] = await prepare(services, Origin(caller, len(body.raw)), [body.value])
        if isinstance(job, OndolError):
            raise job
        place = await services.admission.place(caller.project_id, job.priority)
        room = held.enter_context(await admit(services, [job]))
        return lambda uow: _record_one(uow, services, job, room, place)

    answer = await answer_once(services, _keyed(request, caller, body), prepare_one)
    return json_answer(answer)


@router.post("/batch", openapi_extra=docs.json_body("JobBatchRequest"), responses=docs.BATCH_RESPONSES)
async def submit_batch(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Submit up to 1,000 jobs in one transaction, with one outcome a job: one that is refused spoils no other."""
    body = await read_json(request, services.bodies)

    async def prepare_batch(held: ExitStack) -> Make:
        items = validated(JobBatchRequest, body.value).jobs
        outcomes = await prepare(services, Origin(caller, len(body.raw)), items)
        accepted = _accepted(outcomes)
        room = held.enter_context(await admit(services, accepted)) if accepted else None
        return lambda uow: _record_batch(uow, services, outcomes, room)

    answer = await answer_once(services, _keyed(request, caller, body), prepare_batch)
    return json_answer(answer)


@router.get("", responses=docs.PAGE_RESPONSES)
async def list_jobs(
    services: ServicesDep,
    caller: CallerDep,
    kind: Annotated[JobKind | None, Query(description="Only jobs of this kind.")] = None,
    status: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    model: Annotated[str | None, Query(description="Only jobs of this model: name, name:3 or name@alias.")] = None,
    created_after: Annotated[
        float | None,
        Query(ge=0, le=1e11, allow_inf_nan=False, description="Only jobs accepted after this time (Unix seconds)."),
    ] = None,
    after: Annotated[str | None, Query(description="Begin behind this job: the last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Most jobs of a page.")] = 20,
) -> Response:
    """A page of jobs, newest first."""
    ref = parse_model_ref(model) if model is not None else None
    cursor = check_job_id(after) if after is not None else None

    model_ref = None
    if ref is not None:
        model_ref = await services.database.read(lambda uow: resolve_filter(uow, ref, caller.project_id))
    jobs, has_more = await find_jobs(
        services.database,
        caller.project_id,
        JobFilter(kind, status, model_ref, created_after),
        after=cursor,
        limit=limit,
        limit_s=services.settings.database_limit_s,
    )
    flower_url = services.flower.url()
    data = [job_json(job, flower_url=flower_url) for job in jobs]
    return json_response({"object": "list", "data": data, "has_more": has_more})


@router.get("/{job_id:job_id}", responses=docs.job_responses(200))
async def get_job(
    job_id: str,
    services: ServicesDep,
    caller: CallerDep,
    wait: Annotated[
        float,
        Query(
            ge=0, le=86_400, allow_inf_nan=False, description="Answer when the job has ended, or after so many seconds."
        ),
    ] = 0.0,
) -> Response:
    """One job. With `wait`, a long poll, cut to the longest that the server allows."""
    check_job_id(job_id)
    if wait > 0:
        until = time.monotonic() + min(wait, services.settings.max_wait_s)
        job = await wait_for_end(services, caller.project_id, job_id, until=until)
    else:
        job = await services.database.read(lambda uow: uow.jobs.get(job_id, caller.project_id))
    queue = await _queue_of(services, job) if job.state is JobState.QUEUED else None
    return json_response(job_json(job, queue=queue, flower_url=services.flower.url()))


@router.post("/{job_id}/cancel", responses=docs.job_responses(200))
async def cancel_job(job_id: str, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Cancel a job that has not ended; 409 if it ended otherwise. Cancelling twice changes nothing."""
    check_job_id(job_id)

    def cancel(uow: UnitOfWork) -> JobRecord:
        uow.after_commit(lambda: services.wake.strike([job_id]))
        return _moved(uow, services, uow.jobs.cancel(job_id, caller.project_id))

    return await change_job(request, services, caller, cancel)


@router.post("/{job_id}/retry", responses=docs.job_responses(200))
async def retry_job(job_id: str, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Queue a failed job again; 409 if it did not fail. Its history stays."""
    check_job_id(job_id)

    def retry(uow: UnitOfWork) -> JobRecord:
        uow.after_commit(services.ringer.ring_soon)
        return _moved(uow, services, uow.jobs.retry(job_id, caller.project_id))

    return await change_job(request, services, caller, retry)


@router.delete("/{job_id:job_id}", responses=docs.DELETE_RESPONSES)
async def delete_job(job_id: str, services: ServicesDep, caller: CallerDep) -> Response:
    """Delete a job that has ended, with its input, result and events; 409 while it is active."""
    check_job_id(job_id)
    kind = (await services.database.read(lambda uow: uow.jobs.get(job_id, caller.project_id))).kind
    freed = await services.database.write(lambda uow: uow.jobs.delete(job_id, caller.project_id))
    if kind is JobKind.FINE_TUNE:
        await _delete_checkpoints(services, job_id)
    await _delete_blobs(services, job_id, freed)
    return json_response({"object": "job.deleted", "id": job_id, "deleted": True})


async def change_job(
    request: Request, services: Services, caller: Caller, change: Callable[[UnitOfWork], JobRecord]
) -> Response:
    """The job after `change`, made once."""
    flower_url = services.flower.url()
    return await change_once(request, services, caller, lambda uow: job_json(change(uow), flower_url=flower_url))


async def change_once(
    request: Request, services: Services, caller: Caller, change: Callable[[UnitOfWork], dict[str, Any]]
) -> Response:
    """What `change` gives. With an Idempotency-Key a repeated request gets the first answer again.

    A unit of work whose commit was not answered is run again, and finds what its first run did.
    """
    job_id, key = request.path_params["job_id"], idempotency_key(request)
    digest = hashlib.sha256(request.url.path.encode()).hexdigest()
    keyed = None if key is None else KeyedRequest(caller.project_id, key, digest)
    first: list[tuple[JobState, int, Answer]] = []

    def make(uow: UnitOfWork) -> Answer:
        if uow.is_retry and first and _is_recorded(uow, job_id, *first[-1][:2]):
            return first[-1][2]
        before = uow.jobs.states_of([job_id]).get(job_id)
        answer = Answer(200, orjson.dumps(change(uow)))
        state, seq = uow.jobs.states_of([job_id])[job_id]
        if before is not None and seq > before[1]:  # a change without an event, as a pause asked for, may run again
            first.append((state, seq, answer))
        return answer

    async def prepare_change(_held: ExitStack) -> Make:
        return make

    return json_answer(await answer_once(services, keyed, prepare_change))


def _is_recorded(uow: UnitOfWork, job_id: str, state: JobState, seq: int) -> bool:
    """Whether event `seq` of the job is in SQL as a move to `state`."""
    found = uow.events.after(job_id, seq - 1, limit=1)
    return bool(found) and found[0].seq == seq and found[0].data.get("to") == state


async def _delete_blobs(services: Services, job_id: str, freed: FreedBlobs) -> None:
    def delete() -> None:
        for blobs, paths in ((services.blobs, freed.results), (services.inputs, freed.inputs)):
            for path in paths:
                try:
                    blobs.delete(path)
                except ModelStoreError as exc:  # the rows are gone for good; the file waits for the store's clean-up
                    log.warning("job.blob_not_deleted", job_id=job_id, path=path, reason=exc.message)

    if freed.results or freed.inputs:
        try:
            await in_store(delete)
        except ModelStoreError as exc:  # all of them wait for the clean-up
            log.warning("job.blobs_not_deleted", job_id=job_id, reason=exc.message)


async def _delete_checkpoints(services: Services, job_id: str) -> None:
    try:
        await in_store(services.checkpoints.delete_all, job_id)
    except ModelStoreError as exc:  # the rows are gone for good; the files wait for the store's clean-up
        log.warning("job.checkpoints_not_deleted", job_id=job_id, reason=exc.message)


def check_job_id(job_id: str) -> str:
    """`job_id` if it has the form of one, else JobNotFound without asking the database."""
    if _JOB_ID.fullmatch(job_id) is None:
        raise JobNotFound(f"there is no job {job_id[:80]!r} in this project", param="id")
    return job_id


def json_response(value: Any, *, status: int = 200) -> Response:
    """A value as a JSON answer."""
    return Response(orjson.dumps(value), status, media_type="application/json")


def json_answer(answer: Answer) -> Response:
    """An answer made in a transaction, marked when it was given before."""
    headers = {"idempotent-replayed": "true"} if answer.is_replay else None
    return Response(answer.body, answer.status, headers, media_type="application/json")


def _keyed(request: Request, caller: Caller, body: JsonBody) -> KeyedRequest | None:
    key = idempotency_key(request)
    return KeyedRequest(caller.project_id, key, body.digest(request.url.path)) if key is not None else None


def _record_one(uow: UnitOfWork, services: Services, job: NewJob, room: Reservation, place: Place) -> Answer:
    [record] = record_jobs(uow, services, [job], room)
    queue = _queue_json(record, place, uow.now) if record.state is JobState.QUEUED else None
    return Answer(202, orjson.dumps(job_json(record, queue=queue)))


def _record_batch(uow: UnitOfWork, services: Services, outcomes: Sequence[Outcome], room: Reservation | None) -> Answer:
    records: Iterator[JobRecord] = iter(())
    if room is not None:
        records = iter(record_jobs(uow, services, _accepted(outcomes), room))
    data = [
        {"index": i, "error": error_object(item, status_of(item))}
        if isinstance(item, OndolError)
        else job_json(next(records))
        for i, item in enumerate(outcomes)
    ]
    return Answer(200, orjson.dumps({"object": "list", "data": data}))


def _accepted(outcomes: Sequence[Outcome]) -> list[NewJob]:
    return [item for item in outcomes if not isinstance(item, OndolError)]


def _moved(uow: UnitOfWork, services: Services, job: JobRecord) -> JobRecord:
    uow.after_commit(lambda: services.wake.wake([job.id]))
    return job


async def _queue_of(services: Services, job: JobRecord) -> dict[str, Any]:
    if job.kind is JobKind.FINE_TUNE:  # how long those ahead will train is not known
        num_ahead = await services.database.read(lambda uow: uow.training.queue_position(job))
        return {"position": num_ahead + 1, "estimated_start": None}
    ahead, now = await services.database.read(
        lambda uow: (uow.jobs.queue_position(job, at_most=_MAX_POSITION), uow.now)
    )
    place = await services.admission.place(job.project_id, job.priority, own_ahead=ahead)
    return _queue_json(job, place, now)


def _queue_json(job: JobRecord, place: Place, now: float) -> dict[str, Any]:
    start = max(now + place.start_in_s, job.run_after) if place.start_in_s is not None else None
    return {"position": place.num_ahead + 1, "estimated_start": start}
