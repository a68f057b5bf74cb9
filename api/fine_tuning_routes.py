"""`/v1/fine_tuning/jobs`: OpenAI's routes for fine-tunes. The jobs are those of `/v1/jobs`, under the same ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api import fine_tuning_openapi as docs
from api.admission import Reservation
from api.fine_tuning_events import SHOWN_TYPES, Told, fine_tuning_event_json
from api.fine_tuning_json import Outcome, checkpoint_before, checkpoint_json, event_before, fine_tuning_job_json
from api.fine_tuning_request import read_request
from api.idempotency import Answer, KeyedRequest, Make, answer_once
from api.job_routes import change_once, check_job_id, json_answer, json_response
from api.request_body import idempotency_key, read_json
from api.services import CallerDep, Services, ServicesDep
from api.submission import Origin, admit, prepare, record_jobs
from ondol.contract.errors import InvalidPayload, JobNotFound, OndolError
from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState
from ondol.sql.job_pages import JobFilter
from ondol.sql.purging import Part
from ondol.sql.records import JobRecord, NewJob
from ondol.sql.unit_of_work import UnitOfWork

_METADATA_PARAMETER = re.compile(r'metadata\[([^"\\\[\]]{1,64})\]')
_MAX_FILTERS = 16
_ETA_EVENTS = 5
"""Among so many of the newest events of a training there is one that says how long it will still take."""

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tunes for OpenAI's clients"])

_JobAfter = Annotated[str | None, Query(description="Begin behind this job: the last id of the page before.")]
_Limit = Annotated[int, Query(ge=1, le=100, description="Most objects of a page.")]


@router.post("", openapi_extra=docs.CREATE_BODY, responses=docs.JOB_RESPONSES)
async def create(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Submit a fine-tune. With an Idempotency-Key a repeated request gets the first answer again."""
    body = await read_json(request, services.bodies)

    async def prepare_job(held: ExitStack) -> Make:
        asked = read_request(body.value)
        [job] = await prepare(services, Origin(caller, len(body.raw)), [asked.body])
        if isinstance(job, OndolError):
            raise asked.in_their_words(job)
        room = held.enter_context(await admit(services, [job]))
        return lambda uow: _record(uow, services, job, room)

    key = idempotency_key(request)
    keyed = None if key is None else KeyedRequest(caller.project_id, key, body.digest(request.url.path))
    return json_answer(await answer_once(services, keyed, prepare_job))


@router.get("", openapi_extra=docs.METADATA_PARAMETER, responses=docs.JOB_PAGE_RESPONSES)
async def list_jobs(
    request: Request, services: ServicesDep, caller: CallerDep, after: _JobAfter = None, limit: _Limit = 20
) -> Response:
    """A page of fine-tunes, newest first; `metadata[key]=value` asks for those that bear it."""
    cursor = check_job_id(after) if after is not None else None
    metadata = _wanted_metadata(request)

    def page(uow: UnitOfWork) -> tuple[list[dict[str, Any]], bool]:
        found, has_more = uow.jobs.page(
            caller.project_id, JobFilter(JobKind.FINE_TUNE, metadata=metadata), after=cursor, limit=limit
        )
        return _shown(uow, found), has_more

    data, has_more = await services.database.read(page)
    return _page(data, has_more)


@router.get("/{job_id}", responses=docs.JOB_RESPONSES)
async def retrieve(job_id: str, services: ServicesDep, caller: CallerDep) -> Response:
    """One fine-tune."""
    shown = await services.database.read(lambda uow: _shown(uow, [_find(uow, job_id, caller.project_id)])[0])
    return json_response(shown)


@router.post("/{job_id}/cancel", responses=docs.JOB_RESPONSES)
async def cancel(job_id: str, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Cancel a fine-tune that has not ended; 409 if it ended otherwise. Cancelling twice changes nothing."""

    def move(uow: UnitOfWork) -> dict[str, Any]:
        _find(uow, job_id, caller.project_id)
        uow.after_commit(lambda: services.wake.strike([job_id]))
        uow.after_commit(lambda: services.wake.wake([job_id]))
        return _shown(uow, [uow.jobs.cancel(job_id, caller.project_id)])[0]

    return await change_once(request, services, caller, move)


@router.post("/{job_id}/pause", responses=docs.JOB_RESPONSES)
async def pause(job_id: str, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Ask a fine-tune that trains to stop at its next checkpoint: it is `paused` soon; 409 unless it trains."""

    def move(uow: UnitOfWork) -> dict[str, Any]:
        _find(uow, job_id, caller.project_id)
        uow.after_commit(lambda: services.wake.strike([job_id]))
        return _shown(uow, [uow.training.request_pause(job_id, caller.project_id)])[0]

    return await change_once(request, services, caller, move)


@router.post("/{job_id}/resume", responses=docs.JOB_RESPONSES)
async def resume(job_id: str, request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Queue a paused fine-tune again, to go on from its last checkpoint; 409 if it is not paused."""

    def move(uow: UnitOfWork) -> dict[str, Any]:
        _find(uow, job_id, caller.project_id)
        uow.after_commit(services.ringer.ring_soon)
        uow.after_commit(lambda: services.wake.wake([job_id]))
        return _shown(uow, [uow.training.resume(job_id, caller.project_id)])[0]

    return await change_once(request, services, caller, move)


@router.get("/{job_id}/events", responses=docs.EVENT_PAGE_RESPONSES)
async def list_events(
    job_id: str,
    services: ServicesDep,
    caller: CallerDep,
    after: Annotated[str | None, Query(description="Begin behind this event: the last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most events of a page.")] = 20,
) -> Response:
    """A page of what happened to a fine-tune, newest first."""

    def read(uow: UnitOfWork) -> list[dict[str, Any]]:
        job = _find(uow, job_id, caller.project_id)
        told = Told(job, _models_of(uow, [job]).get(job_id))
        uow.purging.check_part(job_id, Part.EVENTS)
        before = event_before(job_id, after)
        found = uow.events.newest(job_id, types=SHOWN_TYPES, before=before, limit=limit + 1)
        return [fine_tuning_event_json(event, told) for event in found]

    data = await services.database.read(read)
    return _page(data[:limit], len(data) > limit)


@router.get("/{job_id}/checkpoints", responses=docs.CHECKPOINT_PAGE_RESPONSES)
async def list_checkpoints(
    job_id: str,
    services: ServicesDep,
    caller: CallerDep,
    after: Annotated[str | None, Query(description="Begin behind this one: the last id of the page before.")] = None,
    limit: _Limit = 10,
) -> Response:
    """A page of the committed checkpoints that are kept, newest first."""

    def read(uow: UnitOfWork) -> list[dict[str, Any]]:
        _find(uow, job_id, caller.project_id)
        before = checkpoint_before(job_id, after)
        found = [one for one in uow.checkpoints.of(job_id) if before is None or one.step < before]
        return [checkpoint_json(one, uow.events.training_loss_at(job_id, one.step)) for one in found[: limit + 1]]

    data = await services.database.read(read)
    return _page(data[:limit], len(data) > limit)


def _record(uow: UnitOfWork, services: Services, job: NewJob, room: Reservation) -> Answer:
    [record] = record_jobs(uow, services, [job], room)
    return Answer(200, orjson.dumps(fine_tuning_job_json(record, Outcome())))


def _find(uow: UnitOfWork, job_id: str, project_id: str) -> JobRecord:
    """The fine-tune, or JobNotFound: jobs of other kinds are not to be found here."""
    job = uow.jobs.get(check_job_id(job_id), project_id)
    if job.kind is not JobKind.FINE_TUNE:
        raise JobNotFound(f"{job_id} is no fine-tune; it is at /v1/jobs/{job_id}", param="id")
    return job


def _shown(uow: UnitOfWork, jobs: Sequence[JobRecord]) -> list[dict[str, Any]]:
    models = _models_of(uow, jobs)
    return [fine_tuning_job_json(job, Outcome(models.get(job.id), _ends_at(uow, job))) for job in jobs]


def _models_of(uow: UnitOfWork, jobs: Sequence[JobRecord]) -> dict[str, str | None]:
    """The version that each of the jobs has published, by job."""
    done = [job.id for job in jobs if job.state is JobState.SUCCEEDED]
    return {job_id: found["result"]["model"] for job_id, found in uow.results.summaries(done).items()} if done else {}


def _ends_at(uow: UnitOfWork, job: JobRecord) -> float | None:
    """When a running training is expected to be done, by what it has reported under this attempt."""
    if job.state is not JobState.RUNNING or job.started_at is None:
        return None
    for event in uow.events.newest(job.id, types=("metrics",), limit=_ETA_EVENTS):
        eta_s = event.data.get("eta_s")
        if eta_s is not None and event.created_at >= job.started_at:
            return event.created_at + float(eta_s)
    return None


def _wanted_metadata(request: Request) -> dict[str, str] | None:
    """The metadata that is asked for; empty: only jobs without any. None: whatever it is."""
    items = request.query_params.multi_items()
    given = [(name, value) for name, value in items if name == "metadata" or name.startswith("metadata[")]
    if not given:
        return None
    if given == [("metadata", "null")]:
        return {}
    found: dict[str, str] = {}
    for name, value in given:
        key = _METADATA_PARAMETER.fullmatch(name)
        if key is None or "\0" in name + value:
            raise InvalidPayload("ask for metadata by metadata[key]=value, or by metadata=null", param="metadata")
        found[key[1]] = value
    if len(found) > _MAX_FILTERS:
        raise InvalidPayload(f"at most {_MAX_FILTERS} keys of metadata can be asked for", param="metadata")
    return found


def _page(data: list[dict[str, Any]], has_more: bool) -> Response:
    return json_response({"object": "list", "data": data, "has_more": has_more})
