"""How a job's attempt ended: from the outputs of its rows, or an error, to what is recorded of it."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import structlog

from models_store.result_blobs import ResultBlobs
from ondol.contract.errors import AttemptError, DeadlineExceeded, OndolError, StoreUnavailable
from ondol.contract.ids import parent_of
from ondol.sql.records import ClaimedJob, Completion, Failure
from workers.inference_task import Answer, InferenceTask

log = structlog.get_logger(__name__)

MAX_INLINE_RESULT_BYTES = 1_000_000
MAX_INLINE_SHARD_BYTES = 64 * 1024
"""Shards are many: what is larger stands in the store, beside the database."""
_FIRST_BACKOFF_S = 0.5
_FIRST_STORE_BACKOFF_S = 4.0
"""A store that fails is away for longer than a device: five attempts go over a minute."""
_MAX_DOUBLINGS = 7

Outcome = Completion | Failure


@dataclass(frozen=True, slots=True)
class Prepared:
    """A claimed job whose rows are ready for the batcher; `ids`: the caller's, one an input, where there are any."""

    job: ClaimedJob
    task: InferenceTask
    ids: list[Any] | None = None
    refused: frozenset[int] = frozenset()
    """Inputs that were refused before the job came here."""


def outcome_of(ready: Prepared, blobs: ResultBlobs, *, max_attempts: int = 1) -> Outcome:
    """How the job ended. Never raises: a job without an outcome would run for as long as the session lives.

    An input's error that passes fails an attempt before the last of `max_attempts`: the next one has all inputs.
    """
    job, task = ready.job, ready.task
    timings = _timings(job, task)
    try:
        found = task.answer()
        error = _error_of(ready, found, is_last=job.attempt >= max_attempts)
        if error is None:
            return _completion(ready, found, timings, blobs)
    except OndolError as exc:
        error = exc
    except Exception as exc:  # the handler's edge: a fault of ours fails this job, not its neighbours
        log.exception("attempt.crashed", job_id=job.id, attempt=job.attempt)
        error = AttemptError(f"internal error: {type(exc).__name__}")
    return failure_of(job, error, timings=timings, num_losses=task.work.num_new_losses)


def failure_of(
    job: ClaimedJob, error: OndolError, *, timings: dict[str, float] | None = None, num_losses: int = 0
) -> Failure:
    """The failure; how many retries are left is decided in SQL, where they are counted."""
    first_s = _FIRST_STORE_BACKOFF_S if isinstance(error, StoreUnavailable) else _FIRST_BACKOFF_S
    backoff_s = first_s * 2 ** min(job.attempt - 1, _MAX_DOUBLINGS)
    return Failure(
        job_id=job.id,
        attempt=job.attempt,
        error=error.as_dict(),
        retry_after_s=backoff_s if error.retryable else None,
        num_losses=num_losses,
        timings=timings,
    )


def _error_of(ready: Prepared, found: Answer, *, is_last: bool) -> OndolError | None:
    """What fails the attempt as a whole: a missed deadline, an error in each of its inputs, or one that passes.

    Retries are counted in SQL, and are never more than attempts: before the last attempt one is left.
    A shard of nothing but refused inputs did what there was to do: each keeps the error that says why.
    """
    deadline_at, num_inputs = ready.job.deadline_at, ready.task.num_inputs
    if deadline_at is not None and time.time() > deadline_at:
        return DeadlineExceeded("the deadline passed before the job was done")
    passing = [error for i, error in found.errors.items() if error.retryable and i not in ready.refused]
    if passing and not is_last:
        return passing[0]
    if len(found.errors) < num_inputs or len(ready.refused) == num_inputs:
        return None
    return found.errors[min(found.errors.keys() - ready.refused)]


def _completion(ready: Prepared, found: Answer, timings: dict[str, float], blobs: ResultBlobs) -> Completion:
    job, task = ready.job, ready.task
    data = task.data(found)
    is_large = len(data) > (MAX_INLINE_RESULT_BYTES if parent_of(job.id) is None else MAX_INLINE_SHARD_BYTES)
    blob_path = blobs.write(job.id, job.attempt, data) if is_large else None
    summary = task.summary(found)
    return Completion(
        job_id=job.id,
        attempt=job.attempt,
        summary=summary if ready.ids is None else {**summary, "ids": ready.ids},
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        tokens=found.num_tokens,
        timings=timings,
        data=None if is_large else data,
        blob_path=blob_path,
    )


def _timings(job: ClaimedJob, task: InferenceTask) -> dict[str, float]:
    return {
        "queue_wait_s": round(max(0.0, job.claimed_at - job.created_at), 6),
        "load_s": round(task.work.load_s, 6),
        "tokenize_s": round(task.tokenize_s, 6),
        "forward_s": round(task.work.forward_s, 6),
        "store_s": 0.0,
    }
