"""A job as the outside sees it: the one place where its JSON is made."""

from __future__ import annotations

import time
from typing import Any

from ondol.contract.kinds import JobKind
from ondol.contract.states import TERMINAL, JobState
from ondol.sql.records import EventRecord, JobRecord

MIN_ELAPSED_S = 0.001
_TIMINGS = ("queue_wait_s", "load_s", "tokenize_s", "forward_s", "store_s")


def job_json(job: JobRecord, *, queue: dict[str, Any] | None = None, flower_url: str | None = None) -> dict[str, Any]:
    """The job object. `queue` (position, estimated_start) is known only where one job was asked for.

    `flower_url` is Flower's address; without one, or before the first claim, there is no link to the job's task.
    """
    has_result = job.state is JobState.SUCCEEDED or (job.is_sharded and job.state in TERMINAL)
    shown = {
        "object": "job",
        "id": job.id,
        "kind": job.kind.value,
        "status": job.state.value,
        "model": job.model_ref,
        "priority": job.priority.value,
        "created_at": job.created_at,
        "not_before": job.run_after if job.run_after > job.created_at else None,
        "deadline_at": job.deadline_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "attempt": job.attempt,
        "worker": job.worker,
        "progress": _progress(job),
        "usage": {"tokens": job.tokens or 0},
        "timings": _timings(job),
        "error": job.error,
        "result_url": f"/v1/jobs/{job.id}/result" if has_result else None,
        "input_file": job.input_file_id,
        "metadata": job.metadata,
        "webhook": job.webhook,
        "task_id": job.task_id,
        "flower_url": f"{flower_url}/task/{job.message_id}" if flower_url and job.message_id else None,
    }
    if job.kind is JobKind.FINE_TUNE:
        shown |= {
            "resolved": job.resolved,
            "pause_requested_at": job.pause_requested_at,
            "device_released_at": job.device_released_at,
        }
    if queue is not None:
        shown["queue"] = queue
    return shown


def _progress(job: JobRecord) -> dict[str, Any]:
    """How far the job is. One that runs as shards is long: its rate (inputs/s since its start), and seconds to go.

    Both are estimates by this machine's clock; null before the first shard is done.
    """
    unit = "steps" if job.kind is JobKind.FINE_TUNE else "inputs"
    shown: dict[str, Any] = {"done": job.num_done, "total": job.num_inputs, "unit": unit}
    if not job.is_sharded:
        return shown
    rate = eta_s = None
    if job.num_done and job.started_at is not None:
        until = time.time() if job.finished_at is None else job.finished_at
        rate = job.num_done / max(MIN_ELAPSED_S, until - job.started_at)
        eta_s = (job.num_inputs - job.num_done) / rate if job.state not in TERMINAL else None
    return shown | {"rate": rate, "eta_s": eta_s}


def _timings(job: JobRecord) -> dict[str, Any] | None:
    """Seconds by stage; the stages of a training are its own."""
    if not job.timings:
        return None
    if job.kind is JobKind.FINE_TUNE:
        return job.timings
    return {name: job.timings.get(name, 0.0) for name in _TIMINGS}


def event_json(event: EventRecord) -> dict[str, Any]:
    """The event object."""
    return {
        "object": "job.event",
        "seq": event.seq,
        "created_at": event.created_at,
        "type": event.type,
        "data": event.data,
    }
