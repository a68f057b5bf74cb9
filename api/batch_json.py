"""A job as OpenAI's clients see it under `/v1/batches`: status, times and counts of lines."""

from __future__ import annotations

from typing import Any

from ondol.contract.states import TERMINAL, JobState
from ondol.sql.records import JobRecord, JsonObject


def needs_files(job: JobRecord) -> bool:
    """Whether the job has ended with results that no output files hold yet."""
    batch = job.batch or {}
    return job.state in TERMINAL and job.is_sharded and batch.get("files_of") != job.finished_at


def batch_json(job: JobRecord) -> dict[str, Any]:
    """The `batch` object; its id is the job's. A batch never expires here."""
    batch: JsonObject = job.batch or {}
    status = _status(job)
    has_files = not needs_files(job)
    ended_at = _seconds(job.finished_at)
    written_at = _seconds(batch.get("written_at")) if has_files and job.is_sharded else ended_at
    return {
        "id": job.id,
        "object": "batch",
        "endpoint": batch.get("endpoint"),
        "model": job.model_ref,
        "errors": _errors(job) if status == "failed" else None,
        "input_file_id": job.input_file_id,
        "completion_window": batch.get("completion_window"),
        "status": status,
        "output_file_id": batch.get("output_file_id") if has_files else None,
        "error_file_id": batch.get("error_file_id") if has_files else None,
        "created_at": int(job.created_at),
        "in_progress_at": _seconds(job.started_at) if job.is_sharded else None,
        "expires_at": None,
        "finalizing_at": ended_at if job.state is JobState.SUCCEEDED else None,
        "completed_at": written_at if status == "completed" else None,
        "failed_at": ended_at if status == "failed" else None,
        "expired_at": None,
        "cancelling_at": ended_at if job.state is JobState.CANCELLED else None,
        "cancelled_at": written_at if status == "cancelled" else None,
        "request_counts": _counts(job, batch, has_files=has_files),
        "usage": _usage(job),
        "metadata": job.metadata or None,
    }


def _status(job: JobRecord) -> str:
    if job.state not in TERMINAL:
        return "in_progress" if job.is_sharded and job.state is JobState.RUNNING else "validating"
    if job.state is JobState.CANCELLED:
        return "cancelling" if needs_files(job) else "cancelled"
    if needs_files(job):
        return "finalizing"
    return "failed" if job.state is JobState.FAILED or (job.batch or {}).get("error") else "completed"


def _counts(job: JobRecord, batch: JsonObject, *, has_files: bool) -> dict[str, int]:
    """Lines, not inputs: exact once the files are written; before, by how much of the inputs is done."""
    total = int(batch.get("num_lines") or 0)
    if has_files and "counts" in batch:
        counts: dict[str, int] = batch["counts"]
        return counts
    done = total * job.num_done // job.num_inputs if job.is_sharded and job.num_inputs else 0
    return {"total": total, "completed": done, "failed": 0}


def _usage(job: JobRecord) -> dict[str, Any]:
    num_tokens = job.tokens or 0
    return {
        "input_tokens": num_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": num_tokens,
    }


def _errors(job: JobRecord) -> dict[str, Any]:
    error = job.error or (job.batch or {}).get("error") or {}
    shown = {
        "code": str(error.get("code") or "internal_error"),
        "message": str(error.get("message") or "the batch failed"),
        "param": error.get("param"),
        "line": None,
    }
    return {"object": "list", "data": [shown]}


def _seconds(moment: float | None) -> int | None:
    return None if moment is None else int(moment)
