"""Flows about fine-tunes: pause, resume, checkpoints, and waiting with their events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from ondol.client.errors import BadAnswer, WaitTimedOut
from ondol.client.flow import Flow, Json, Request, exchange_json
from ondol.client.job_flows import PAGE_EVENTS, PROGRESS_POLL_S, change_job
from ondol.client.records import JobEvent, JobFields, parse_event, parse_job, parse_page
from ondol.client.retry import RetryPolicy


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint: training can go on from it. `metrics` are those of its evaluation, if there was one."""

    step: int
    attempt: int
    metrics: Mapping[str, float]
    is_best: bool
    size_bytes: int
    created_at: datetime
    raw: Json


class Watcher(Protocol):
    """Who is told what happens to a job."""

    def take(self, event: JobEvent) -> None:
        """The next event, in order and each once."""
        ...

    def see(self, job: JobFields) -> None:
        """The job as it is now."""
        ...


def pause_job(job_id: str, policy: RetryPolicy) -> Flow[JobFields]:
    """The job, asked to pause at its next checkpoint; StateConflict unless it trains."""
    return (yield from change_job(job_id, "pause", policy))


def resume_job(job_id: str, policy: RetryPolicy) -> Flow[JobFields]:
    """The paused job, queued again; StateConflict if it is not paused."""
    return (yield from change_job(job_id, "resume", policy))


def list_checkpoints(job_id: str, policy: RetryPolicy) -> Flow[list[Checkpoint]]:
    """Committed checkpoints, newest first."""
    page = parse_page((yield from exchange_json(Request("GET", f"/v1/jobs/{job_id}/checkpoints"), policy)))
    return [_parse_checkpoint(raw) for raw in page.data]


def wait_with_events(
    job_id: str, policy: RetryPolicy, watcher: Watcher, *, timeout_s: float | None = None
) -> Flow[JobFields]:
    """The job once it has ended, however it ended; its events go to `watcher` within a second or so, from the first.

    WaitTimedOut after `timeout_s`: unlike a stream of events, whose server may be silent for long, this keeps to it.
    """
    policy = policy.patient()
    give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
    wait_s, seq = 0.0, 0
    while True:
        send = Request("GET", f"/v1/jobs/{job_id}", params={"wait": round(wait_s, 3)}, patience_s=wait_s)
        job = parse_job((yield from exchange_json(send, policy)))
        seq = yield from _read_events(job_id, seq, policy, watcher)  # after the job, so that the last one is seen too
        watcher.see(job)
        if job.has_ended:
            return job
        left_s = PROGRESS_POLL_S if give_up_at is None else give_up_at - time.monotonic()
        if left_s <= 0:
            raise WaitTimedOut(f"job {job_id} was still {job.status} after {timeout_s} s; it goes on running")
        wait_s = min(PROGRESS_POLL_S, left_s)


def _read_events(job_id: str, seq: int, policy: RetryPolicy, watcher: Watcher) -> Flow[int]:
    """Hand on the events behind `seq`; the number of the last one."""
    while True:
        params = {"after": seq, "limit": PAGE_EVENTS}
        send = Request("GET", f"/v1/jobs/{job_id}/events", params=params, headers={"accept": "application/json"})
        page = parse_page((yield from exchange_json(send, policy)))
        for raw in page.data:
            event = parse_event(raw)
            watcher.take(event)
            seq = event.seq
        if not page.has_more or not page.data:
            return seq


def _parse_checkpoint(raw: Json) -> Checkpoint:
    try:
        return Checkpoint(
            step=raw["step"],
            attempt=raw["attempt"],
            metrics=raw.get("metrics") or {},
            is_best=bool(raw["is_best"]),
            size_bytes=raw["size_bytes"],
            created_at=datetime.fromtimestamp(raw["created_at"], UTC),
            raw=raw,
        )
    except (KeyError, TypeError) as exc:
        raise BadAnswer(f"this is not a checkpoint: {str(raw)[:200]}") from exc
