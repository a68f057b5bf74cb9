"""`/v1/jobs/{id}/events`: what happened to a job, as a list or as server-sent events without gap or repeat."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api import openapi_parts as docs
from api.accept import choose_format
from api.event_streams import MEDIA_TYPE, EventStreamResponse
from api.job_json import event_json
from api.job_routes import check_job_id, json_response
from api.services import CallerDep, Services, ServicesDep
from api.waiting import POLL_S, wait_any
from ondol.contract.errors import InvalidPayload
from ondol.contract.states import TERMINAL
from ondol.sql.purging import Part
from ondol.sql.records import EventRecord, JobRecord
from ondol.sql.unit_of_work import UnitOfWork

JSON, SSE = "application/json", MEDIA_TYPE
PAGE_EVENTS = 200
HEARTBEAT_S = 15.0

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get("/{job_id}/events", responses=docs.EVENT_RESPONSES)
async def get_events(
    job_id: str,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="Only events behind this number.")] = 0,
    limit: Annotated[int, Query(ge=1, le=500, description="Most events of a JSON list.")] = 100,
) -> Response:
    """Events in order. With `Accept: text/event-stream` they come as they happen, until the job has ended.

    A stream resumes behind `Last-Event-ID`; 204 says that nothing more will come. A project that has as many streams
    open as it may gets 429, and everybody 503 where this process has; the list answers all the same.
    """
    check_job_id(job_id)
    if choose_format(request.headers.get("accept"), [JSON, SSE]) == JSON:
        events = await services.database.read(lambda uow: _page(uow, job_id, caller.project_id, after, limit + 1))
        data = [event_json(event) for event in events[:limit]]
        return json_response({"object": "list", "data": data, "has_more": len(events) > limit})
    place = _place(request.headers.get("last-event-id"), after)
    job = await services.database.read(lambda uow: _job_with_events(uow, job_id, caller.project_id))
    if _is_over(job, place):
        return Response(status_code=204)
    return EventStreamResponse(_stream(services, job_id, place), services.streams, caller.project_id)


@dataclass(frozen=True, slots=True)
class _Look:
    """What one read saw: some events, and whether they are the last."""

    events: list[EventRecord]
    is_last: bool
    is_full: bool


async def _stream(services: Services, job_id: str, place: int) -> AsyncIterator[bytes]:
    sent_at = time.monotonic()
    yield b"retry: 1000\n\n"
    with services.listener.watch(job_id) as moved:
        while True:
            moved.clear()
            seen = await services.database.read(lambda uow, after=place: _look(uow, job_id, after))  # type: ignore[misc]  # the default binds the place of this round
            for event in seen.events:
                yield b"id: %d\ndata: %s\n\n" % (event.seq, orjson.dumps(event_json(event)))
                place, sent_at = event.seq, time.monotonic()
            if seen.is_last or services.stopping.is_set():
                return
            if seen.is_full:
                continue
            if time.monotonic() - sent_at >= HEARTBEAT_S:
                yield b": still here\n\n"
                sent_at = time.monotonic()
            await wait_any([moved, services.stopping], POLL_S)


def _look(uow: UnitOfWork, job_id: str, after: int) -> _Look:
    events = uow.events.after(job_id, after, limit=PAGE_EVENTS)
    state = uow.jobs.states_of([job_id]).get(job_id)
    last = events[-1].seq if events else after
    # The state may be newer than the events, but never older: its number says whether all of them were seen.
    is_last = state is None or (state[0] in TERMINAL and state[1] <= last)
    return _Look(events, is_last, is_full=len(events) == PAGE_EVENTS)


def _page(uow: UnitOfWork, job_id: str, project_id: str, after: int, limit: int) -> list[EventRecord]:
    _job_with_events(uow, job_id, project_id)
    return uow.events.after(job_id, after, limit=limit)


def _job_with_events(uow: UnitOfWork, job_id: str, project_id: str) -> JobRecord:
    """The job; PartGone if its events are over their time."""
    job = uow.jobs.get(job_id, project_id)
    uow.purging.check_part(job_id, Part.EVENTS)
    return job


def _place(last_event_id: str | None, after: int) -> int:
    if not last_event_id:
        return after
    if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > 9:
        raise InvalidPayload("Last-Event-ID is the number of an event", param="Last-Event-ID")
    return int(last_event_id)


def _is_over(job: JobRecord, place: int) -> bool:
    return job.state in TERMINAL and job.event_seq <= place
