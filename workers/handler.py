"""The handler of a message: claim, run, record. It waits for its rows, so that Flower shows true run times."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from models_store.result_blobs import ResultBlobs
from ondol.broker.wake import WakeBus
from ondol.contract.errors import AttemptError, DatabaseUnavailable, DeadlineExceeded, OndolError
from ondol.contract.kinds import JobKind
from ondol.contract.payloads import EmbeddingOptions
from ondol.control.ringer import Ringer
from ondol.sql.database import Database
from ondol.sql.records import ClaimedJob, Completion, Failure
from ondol.sql.unit_of_work import UnitOfWork
from workers import embedding
from workers.batcher import Batcher
from workers.claims import Claims
from workers.import_job import ImportRunner
from workers.in_flight import InFlight
from workers.model_library import ModelLibrary
from workers.session import SessionKeeper

log = structlog.get_logger(__name__)

MAX_INLINE_RESULT_BYTES = 1_000_000
_MAX_BACKOFF_S = 60.0
_WAIT_SLICE_S = 0.5
_RETRY_PAUSE_S = 0.3

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HandlerDeps:
    """What the handler works with; built once in `workers.main`."""

    database: Database
    library: ModelLibrary
    batcher: Batcher
    session: SessionKeeper
    in_flight: InFlight
    claims: Claims
    ringer: Ringer
    wake: WakeBus
    blobs: ResultBlobs
    importer: ImportRunner
    stopping: threading.Event
    worker: str
    max_attempts: int


Outcome = Completion | Failure


def handle(message_id: str, deps: HandlerDeps) -> None:
    """Run all jobs of the message that this session can claim. What is stale, cancelled or finished is left out."""
    session_id = deps.session.current()
    if session_id is None or deps.stopping.is_set():
        return  # no lease to claim under: the reconciler rings again
    claimed = deps.database.write(lambda uow: uow.attempts.claim(message_id, session_id=session_id, worker=deps.worker))
    deps.claims.add(claimed)
    deps.wake.wake([job.id for job in claimed])
    try:
        if claimed:
            _run_and_record(claimed, session_id, deps)
    finally:
        deps.claims.remove(claimed)
        _persist(lambda uow: uow.ringing.finish(message_id), session_id, deps)
        if not deps.stopping.is_set():
            deps.ringer.ring_soon()


def _run_and_record(claimed: list[ClaimedJob], session_id: str, deps: HandlerDeps) -> None:
    outcomes: list[Outcome] = []
    waiting: list[tuple[ClaimedJob, embedding.EmbeddingTask]] = []
    for job in claimed:
        try:
            if job.kind is JobKind.EMBEDDING:
                waiting.append((job, _prepare(job, deps)))
            else:
                deps.importer.run(job)
        except OndolError as exc:
            outcomes.append(_failure(job, exc, deps))
        except Exception as exc:  # the handler's edge: a fault of ours fails this job, not its neighbours
            log.exception("attempt.crashed", job_id=job.id, attempt=job.attempt)
            outcomes.append(_failure(job, AttemptError(f"internal error: {type(exc).__name__}"), deps))
    tasks = [task for _, task in waiting]
    deps.in_flight.add([task.work for task in tasks])
    try:
        deps.batcher.add([task.work for task in tasks if task.work.rows])
        unfinished = _wait([(job, task) for job, task in waiting], session_id, deps)
        if deps.session.current() != session_id and not deps.stopping.is_set():
            return  # the lease is lost: others own these jobs now
        held = {job.id for job in unfinished}
        for job, task in waiting:
            if job.id not in held and not task.work.is_struck:
                outcomes.append(_outcome(job, task, deps))
    finally:
        deps.in_flight.remove([task.work for task in tasks])
    _record(outcomes, unfinished, session_id, deps)


def _prepare(job: ClaimedJob, deps: HandlerDeps) -> embedding.EmbeddingTask:
    assert job.version_id is not None
    return embedding.prepare(
        deps.library,
        work_id=job.id,
        version_id=job.version_id,
        options=EmbeddingOptions.model_validate(job.options),
        inputs=json.loads(job.payload),
        priority=job.priority,
        deadline_at=job.deadline_at,
        is_alone=job.is_alone,
        num_losses=job.num_losses if job.is_alone else 0,
    )


def _wait(
    waiting: list[tuple[ClaimedJob, embedding.EmbeddingTask]], session_id: str, deps: HandlerDeps
) -> list[ClaimedJob]:
    """Wait for all rows; the jobs that are to be handed back because the worker stops."""
    for _, task in waiting:
        work = task.work
        while work.rows and not work.done.wait(_WAIT_SLICE_S):
            if deps.stopping.is_set() or deps.session.current() != session_id:
                break
    if not deps.stopping.is_set():
        return []
    unfinished = [(job, task) for job, task in waiting if task.work.rows and not task.work.done.is_set()]
    for _, task in unfinished:
        task.work.strike()
    return [job for job, _ in unfinished]


def _outcome(job: ClaimedJob, task: embedding.EmbeddingTask, deps: HandlerDeps) -> Outcome:
    found = embedding.answer(task)
    timings = _timings(job, task)
    if len(found.errors) == task.num_inputs:
        error = found.errors[min(found.errors)]
        return _failure(job, error, deps, timings=timings, num_losses=task.work.num_new_losses)
    data = embedding.data_of(found)
    is_large = len(data) > MAX_INLINE_RESULT_BYTES
    blob_path = deps.blobs.write(job.id, job.attempt, data) if is_large else None
    return Completion(
        job_id=job.id,
        attempt=job.attempt,
        summary=embedding.summary_of(task, found),
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        tokens=found.num_tokens,
        timings=timings,
        data=None if is_large else data,
        blob_path=blob_path,
    )


def _timings(job: ClaimedJob, task: embedding.EmbeddingTask) -> dict[str, float]:
    return {
        "queue_wait_s": round(max(0.0, job.claimed_at - job.created_at), 6),
        "load_s": round(task.work.load_s, 6),
        "tokenize_s": round(task.tokenize_s, 6),
        "forward_s": round(task.work.forward_s, 6),
        "store_s": 0.0,
    }


def _failure(
    job: ClaimedJob,
    error: OndolError,
    deps: HandlerDeps,
    *,
    timings: dict[str, float] | None = None,
    num_losses: int = 0,
) -> Failure:
    may_retry = error.retryable and job.attempt < deps.max_attempts and not isinstance(error, DeadlineExceeded)
    return Failure(
        job_id=job.id,
        attempt=job.attempt,
        error=error.as_dict(),
        retry_after_s=min(_MAX_BACKOFF_S, 0.25 * 2**job.attempt) if may_retry else None,
        num_losses=num_losses,
        timings=timings,
    )


def _record(outcomes: list[Outcome], unfinished: list[ClaimedJob], session_id: str, deps: HandlerDeps) -> None:
    """State and result in one transaction, all jobs of the message at once; then wake whoever waits."""
    completions = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    if not outcomes and not unfinished:
        return
    started_at = time.monotonic()

    def work(uow: UnitOfWork) -> list[str]:
        recorded = uow.attempts.complete(completions, worker=deps.worker) if completions else []
        recorded += uow.attempts.fail(failures, max_retries=deps.max_attempts, worker=deps.worker) if failures else []
        recorded += uow.attempts.hand_back([(job.id, job.attempt) for job in unfinished]) if unfinished else []
        uow.after_commit(lambda: deps.wake.wake(recorded))
        return recorded

    recorded = _persist(work, session_id, deps)
    if recorded is None:
        return
    log.info(
        "message.recorded",
        num_succeeded=len(completions),
        num_failed=len(failures),
        num_handed_back=len(unfinished),
        num_stale=len(outcomes) + len(unfinished) - len(recorded),
        store_s=round(time.monotonic() - started_at, 4),
    )
    for failure in failures:
        log.warning("attempt.failed", job_id=failure.job_id, attempt=failure.attempt, code=failure.error["code"])


def _persist(work: Callable[[UnitOfWork], T], session_id: str, deps: HandlerDeps) -> T | None:
    """Write while the lease runs: an outage of SQL shorter than it costs nothing. None: the lease is lost."""
    while True:
        try:
            return deps.database.write(work)
        except DatabaseUnavailable as exc:
            if deps.session.current() != session_id:
                log.warning("attempt.given_up", reason=exc.message)
                return None
            threading.Event().wait(_RETRY_PAUSE_S)
