"""Flows about jobs: submit, look, wait, result, cancel, delete, list."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ondol.client.errors import BadAnswer, ItemError, JobFailed, NoSuchThing, OndolAPIError, WaitTimedOut
from ondol.client.flow import Flow, Json, Request, Sink, delete, exchange, exchange_json, idempotent
from ondol.client.records import (
    JobEvent,
    JobFields,
    JobRequest,
    JobResult,
    Page,
    parse_event,
    parse_item_error,
    parse_job,
    parse_page,
    parse_result,
)
from ondol.client.result_sinks import ItemLines, NpySink, VectorItems
from ondol.client.retry import RetryPolicy
from ondol.client.vectors import Vectors
from ondol.contract.errors import InvalidPayload

MAX_BATCH_JOBS = 1_000
MAX_BATCH_BYTES = 16 * 1024 * 1024
LONG_POLL_S = 30.0
PROGRESS_POLL_S = 1.0
PAGE_JOBS = 100
PAGE_EVENTS = 500
RESULT_FORMATS = {
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "jsonl": "application/x-ndjson",
    "npy": "application/x-npy",
    "parquet": "application/vnd.apache.parquet",
}
"""How results come, by the names of formats."""
_NOT_ACCEPTABLE = 406
_NUM_ERRORS = "ondol-num-errors"

OnUpdate = Callable[[JobFields], None]
OnProgress = Callable[[int, int], None]
"""Told (done, in all)."""
Outcome = JobFields | ItemError


def submit_job(request: JobRequest, policy: RetryPolicy, *, idempotency_key: str | None = None) -> Flow[JobFields]:
    """The accepted job. Safe to repeat: every try carries the same Idempotency-Key."""
    send = Request("POST", "/v1/jobs", body=request.body(), headers=idempotent(idempotency_key))
    return parse_job((yield from exchange_json(send, policy)))


def submit_jobs(
    requests: Sequence[JobRequest], policy: RetryPolicy, *, idempotency_key: str | None = None
) -> Flow[list[Outcome]]:
    """One outcome a request, in order; each slice of them is one transaction of the server."""
    outcomes: list[Outcome] = []
    for number, part in enumerate(_slices(requests)):
        headers = idempotent(f"{idempotency_key}/{number}" if idempotency_key else None)
        send = Request("POST", "/v1/jobs/batch", body={"jobs": part}, headers=headers)
        page = parse_page((yield from exchange_json(send, policy)))
        if len(page.data) != len(part):
            raise BadAnswer(f"{len(part)} jobs were submitted, and the server answered for {len(page.data)}")
        outcomes += [_outcome(item) for item in page.data]
    return outcomes


def get_job(job_id: str, policy: RetryPolicy) -> Flow[JobFields]:
    """The job as it is now."""
    return parse_job((yield from exchange_json(Request("GET", f"/v1/jobs/{job_id}"), policy)))


def wait_for_job(
    job_id: str, policy: RetryPolicy, *, timeout_s: float | None = None, on_update: OnUpdate | None = None
) -> Flow[JobFields]:
    """The job once it has ended, however it ended; WaitTimedOut after `timeout_s`.

    `on_update` is told about the job each second or so; without it the server holds its answer back for up to 30 s.
    """
    give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
    poll_s = PROGRESS_POLL_S if on_update else LONG_POLL_S
    while True:
        left_s = poll_s if give_up_at is None else max(0.0, min(poll_s, give_up_at - time.monotonic()))
        send = Request("GET", f"/v1/jobs/{job_id}", params={"wait": round(left_s, 3)}, patience_s=left_s)
        job = parse_job((yield from exchange_json(send, policy.patient())))
        if on_update:
            on_update(job)
        if job.has_ended:
            return job
        if give_up_at is not None and time.monotonic() >= give_up_at:
            raise WaitTimedOut(f"job {job_id} was still {job.status} after {timeout_s} s; it goes on running")


def wait_for_jobs(
    job_ids: Sequence[str],
    policy: RetryPolicy,
    *,
    timeout_s: float | None = None,
    on_progress: OnProgress | None = None,
) -> Flow[list[JobFields]]:
    """All jobs once all have ended, in the order given; WaitTimedOut after `timeout_s` in all.

    `on_progress` is told how many of them, from the first on, have ended.
    """
    give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
    ended: list[JobFields] = []
    for job_id in job_ids:
        left_s = None if give_up_at is None else max(0.0, give_up_at - time.monotonic())
        ended.append((yield from wait_for_job(job_id, policy, timeout_s=left_s)))
        if on_progress:
            on_progress(len(ended), len(job_ids))
    return ended


def get_result(job_id: str, policy: RetryPolicy) -> Flow[JobResult]:
    """The result of an ended job; JobFailed if it has none because it failed or was cancelled."""
    try:
        body = yield from exchange_json(_result_request(job_id, "application/json"), policy)
    except OndolAPIError as error:
        yield from _explain(job_id, error, policy)
        raise
    return parse_result(body)


def get_vectors(job_id: str, policy: RetryPolicy) -> Flow[tuple[Vectors, dict[int, ItemError]]]:
    """Float32 [N, H] of an ended embedding job, filled while it arrives, and the inputs that failed (NaN rows).

    InvalidPayload if the job gave labels or entities, or has no inputs, as an import.
    """
    sink = NpySink()
    try:
        yield from save_result(job_id, "npy", sink, policy)
    except OndolAPIError as error:
        if error.status != _NOT_ACCEPTABLE:  # some inputs failed, so that the result is no rectangle
            raise
        found = VectorItems()
        yield from get_items(job_id, found.take, found.restart, policy)
        return found.vectors(), found.errors
    return sink.vectors(), {}


def get_items(
    job_id: str, take: Callable[[Json], None], restart: Callable[[], None], policy: RetryPolicy
) -> Flow[None]:
    """Hand each item of an ended job's result to `take` as it arrives; `restart`: forget all, they come again."""
    lines = ItemLines(take, restart)
    try:
        yield from save_result(job_id, "ndjson", lines, policy)
    except OndolAPIError as error:
        if error.status == _NOT_ACCEPTABLE:
            raise InvalidPayload("the job's result has no items, as that of an import; take it as JSON") from error
        raise
    lines.end()


def save_result(job_id: str, result_format: str, sink: Sink, policy: RetryPolicy) -> Flow[int | None]:
    """Bring the result of an ended job to the sink as `json`, `ndjson` (or `jsonl`), `npy` or `parquet`.

    How many inputs have an error in it; None: the server does not say, as of a cancelled job.
    JobFailed if there is none because the job failed or was cancelled; InvalidPayload for another format.
    """
    media_type = RESULT_FORMATS.get(result_format)
    if media_type is None:
        raise InvalidPayload(f"a result comes as {', '.join(RESULT_FORMATS)}; not {result_format!r}", param="format")
    try:
        answer = yield from exchange(replace(_result_request(job_id, media_type), sink=sink), policy.patient())
    except OndolAPIError as error:
        yield from _explain(job_id, error, policy)
        raise
    told = answer.headers.get(_NUM_ERRORS, "")
    return int(told) if told.isdecimal() else None


def format_of(path: str | Path, asked: str | None) -> str:
    """The format asked for, else the one that the file's name ends in; InvalidPayload if that is none."""
    found = asked if asked is not None else Path(path).suffix.lower().removeprefix(".")
    if found not in RESULT_FORMATS:
        raise InvalidPayload(
            f"name a format ({', '.join(RESULT_FORMATS)}), or a file that ends in one, not {str(path)!r}",
            param="format",
        )
    return found


def list_events(job_id: str, policy: RetryPolicy) -> Flow[list[JobEvent]]:
    """The events so far, in order, from as many pages as there are."""
    events: list[JobEvent] = []
    while True:
        params = {"limit": PAGE_EVENTS, "after": events[-1].seq if events else 0}
        send = Request("GET", f"/v1/jobs/{job_id}/events", params=params, headers={"accept": "application/json"})
        page = parse_page((yield from exchange_json(send, policy)))
        events += [parse_event(raw) for raw in page.data]
        if not page.has_more or not page.data:
            return events


def cancel_job(job_id: str, policy: RetryPolicy) -> Flow[JobFields]:
    """The job, cancelled; StateConflict if it had ended before."""
    return (yield from change_job(job_id, "cancel", policy))


def retry_job(job_id: str, policy: RetryPolicy) -> Flow[JobFields]:
    """The failed job, queued again; StateConflict if it has not failed."""
    return (yield from change_job(job_id, "retry", policy))


def change_job(job_id: str, verb: str, policy: RetryPolicy) -> Flow[JobFields]:
    """The job after `verb`; StateConflict where its state does not allow that. Safe to repeat, as a submit is."""
    send = Request("POST", f"/v1/jobs/{job_id}/{verb}", headers=idempotent())
    return parse_job((yield from exchange_json(send, policy)))


def delete_job(job_id: str, policy: RetryPolicy) -> Flow[None]:
    """Nothing; inputs, result and events of the job are gone."""
    yield from delete(f"/v1/jobs/{job_id}", policy)


def list_jobs(policy: RetryPolicy, *, filters: Mapping[str, str | int | float], after: str | None) -> Flow[Page]:
    """One page of jobs, newest first, after the job `after`."""
    params = dict(filters) if after is None else {**filters, "after": after}
    return parse_page((yield from exchange_json(Request("GET", "/v1/jobs", params=params), policy)))


def job_filters(
    *, kind: str | None, status: str | None, model: str | None, created_after: float | datetime | None
) -> dict[str, str | int | float]:
    """Those that are given, as `GET /v1/jobs` takes them. InvalidPayload for a time without a zone."""
    if isinstance(created_after, datetime):
        if created_after.tzinfo is None:
            raise InvalidPayload("a time without a zone says nothing; use datetime.now(UTC)", param="created_after")
        created_after = created_after.timestamp()
    given = {"kind": kind, "status": status, "model": model, "created_after": created_after}
    return {
        name: value if isinstance(value, float) else str(value) for name, value in given.items() if value is not None
    }


def page_limit(left: int | None) -> int:
    """How many jobs to ask for when `left` (None: all) are still wanted."""
    return PAGE_JOBS if left is None else min(PAGE_JOBS, left)


def _slices(requests: Sequence[JobRequest]) -> Iterator[list[Json]]:
    """The requests' bodies in order: at most 1,000, and about 16 MiB of JSON, at a time."""
    part: list[Json] = []
    part_bytes = 0
    for request in requests:
        body = request.body()
        body_bytes = len(json.dumps(body))
        if part and (len(part) == MAX_BATCH_JOBS or part_bytes + body_bytes > MAX_BATCH_BYTES):
            yield part
            part, part_bytes = [], 0
        part.append(body)
        part_bytes += body_bytes
    if part:
        yield part


def _explain(job_id: str, error: OndolAPIError, policy: RetryPolicy) -> Flow[None]:
    """Raise JobFailed in place of `error` where the job's end is the reason that there is no result."""
    if isinstance(error, NoSuchThing) or error.status == 409:
        job = yield from get_job(job_id, policy)
        if job.status in ("failed", "cancelled"):
            raise JobFailed(job) from error


def _result_request(job_id: str, accept: str) -> Request:
    return Request("GET", f"/v1/jobs/{job_id}/result", headers={"accept": accept})


def _outcome(raw: Json) -> Outcome:
    error: Mapping[str, Any] | None = raw.get("error")
    if raw.get("object") == "job" or "id" in raw:
        return parse_job(raw)
    return parse_item_error(error) or ItemError("unknown", "the server gave no reason")
