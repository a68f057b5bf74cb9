"""The handler of a message: claim, run, record. It waits for its rows, so that Flower shows true run times."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import structlog

from models_store.input_blobs import InputBlobs
from models_store.result_blobs import ResultBlobs
from ondol.broker.wake import WakeBus
from ondol.contract.errors import AttemptError, DatabaseUnavailable, OndolError, StaleAttempt, UnknownJobKind
from ondol.contract.kinds import INFERENCE_KINDS, JobKind
from ondol.control.ringer import Ringer
from ondol.logs import log_context
from ondol.metrics.roles import WorkerMetrics
from ondol.sql.database import Database
from ondol.sql.records import ClaimedJob, Completion, Failure
from ondol.sql.unit_of_work import UnitOfWork
from workers.batcher import Batcher
from workers.claims import Claims
from workers.import_job import ImportRunner
from workers.in_flight import InFlight
from workers.inference_task import TaskRequest
from workers.model_library import ModelLibrary
from workers.outcomes import Outcome, Prepared, failure_of, outcome_of
from workers.rows import Work
from workers.session import SessionKeeper
from workers.sharding.payload import read_payload
from workers.sharding.planner import PlannedShards, ShardPlanner
from workers.tasks import prepare

log = structlog.get_logger(__name__)

_WAIT_SLICE_S = 0.5
_RETRY_PAUSE_S = 0.3
_STAGES = ("queue_wait", "load", "tokenize", "forward")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HandlerDeps:
    """What the handler works with; built once in `workers.worker_process`."""

    database: Database
    library: ModelLibrary
    batcher: Batcher
    session: SessionKeeper
    in_flight: InFlight
    claims: Claims
    ringer: Ringer
    wake: WakeBus
    blobs: ResultBlobs
    inputs: InputBlobs
    importer: ImportRunner
    planner: ShardPlanner
    stopping: threading.Event
    worker: str
    max_attempts: int
    metrics: WorkerMetrics


@dataclass(slots=True)
class _Record:
    """What is to be written about the jobs of a message, all of one kind: ends, and jobs that go back to the queue.

    `finishes`: the message, if these are the last of its jobs; it is forgotten in the same transaction.
    """

    kind: JobKind
    outcomes: list[Outcome] = field(default_factory=list)
    unfinished: list[ClaimedJob] = field(default_factory=list)
    finishes: str | None = None


def handle(message_id: str, deps: HandlerDeps) -> None:
    """Run all jobs of the message that this session can claim. What is stale, cancelled or finished is left out."""
    session_id = deps.session.current()
    if session_id is None:
        return  # no lease to claim under: the reconciler rings again
    claimed: list[ClaimedJob] = []
    is_finished = False
    deps.claims.begin(message_id)
    with log_context(message_id=message_id, worker=deps.worker):
        try:
            if not deps.stopping.is_set():
                claimed = _claim(message_id, session_id, deps)
            groups = _groups(claimed)
            for group in groups:
                record = _Record(group[0].kind, finishes=message_id if group is groups[-1] else None)
                with log_context(**_named(group)):
                    is_finished = _run_and_record(group, record, session_id, deps)
        finally:
            deps.claims.end(message_id, claimed)
            if not is_finished:
                _persist(lambda uow: uow.ringing.finish(message_id), session_id, deps)
            if not deps.stopping.is_set():
                deps.ringer.ring_soon()


def _claim(message_id: str, session_id: str, deps: HandlerDeps) -> list[ClaimedJob]:
    found = deps.database.write(lambda uow: uow.attempts.claim(message_id, session_id=session_id, worker=deps.worker))
    claimed = [_by_own_clock(job) for job in found]
    deps.claims.add(claimed)
    deps.wake.wake([job.id for job in claimed], has_notices=False)
    if claimed:
        deps.metrics.attempts.claimed(claimed[0].kind, claimed[0].priority, len(claimed))
    return claimed


def _by_own_clock(job: ClaimedJob) -> ClaimedJob:
    """The job with its deadline by this machine's clock: SQL gave it by its own, which may differ by minutes."""
    if job.deadline_at is None:
        return job
    return replace(job, deadline_at=time.time() + (job.deadline_at - job.claimed_at))


def _groups(claimed: list[ClaimedJob]) -> list[list[ClaimedJob]]:
    """What is run and recorded together. Reading a file takes long: nobody waits for it, and no file for another."""
    runs = [job for job in claimed if job.input_file_id is None]
    plans = [[job] for job in claimed if job.input_file_id is not None]
    return [runs, *plans] if runs else plans


def _named(claimed: list[ClaimedJob]) -> dict[str, object]:
    """What every line logged on behalf of these jobs of one message carries."""
    if len(claimed) > 1:
        return {"kind": claimed[0].kind, "job_ids": [job.id for job in claimed]}
    return {"kind": claimed[0].kind, "job_id": claimed[0].id, "attempt": claimed[0].attempt}


def _run_and_record(claimed: list[ClaimedJob], record: _Record, session_id: str, deps: HandlerDeps) -> bool:
    """Run the jobs, or plan one; whether the message was finished with what was recorded."""
    prepared = [ready for job in claimed if (ready := _begin(job, record, session_id, deps)) is not None]
    works = [ready.task.work for ready in prepared]
    deps.in_flight.add(works)
    try:
        deps.batcher.add(works)
        is_ending = _wait(works, session_id, deps)
    finally:
        deps.in_flight.remove(works)
    if deps.session.current() != session_id:
        return False  # the lease is lost: others own these jobs now
    del works
    while prepared:  # outputs go when the bytes are made of them
        ready = prepared.pop(0)
        if not ready.task.work.is_struck:
            record.outcomes.append(outcome_of(ready, deps.blobs, max_attempts=deps.max_attempts))
        elif is_ending:
            record.unfinished.append(ready.job)
        else:  # struck by whoever cancelled the job
            deps.metrics.attempts.ended(ready.job.kind, "cancelled")
    return _store(record, session_id, deps)


def _begin(job: ClaimedJob, record: _Record, session_id: str, deps: HandlerDeps) -> Prepared | None:
    """The job ready for the batcher; None when it has ended already, or must go back to the queue."""
    with log_context(job_id=job.id, attempt=job.attempt):
        return _begin_one(job, record, session_id, deps)


def _begin_one(job: ClaimedJob, record: _Record, session_id: str, deps: HandlerDeps) -> Prepared | None:
    try:
        if _must_end(session_id, deps):
            record.unfinished.append(job)
        elif job.input_file_id is not None:
            _plan(job, record, session_id, deps)
        elif job.kind in INFERENCE_KINDS:
            return _prepare(job, deps)
        elif job.kind is not JobKind.IMPORT:
            raise UnknownJobKind(f"jobs of kind {job.kind} are not run by this worker", param="kind")
        else:
            _import(job, record, session_id, deps)
    except DatabaseUnavailable:  # an outage is nobody's failure: no retry is counted for it
        record.unfinished.append(job)
    except OndolError as exc:
        record.outcomes.append(failure_of(job, exc))
    except Exception as exc:  # the handler's edge: a fault of ours fails this job, not its neighbours
        log.exception("attempt.crashed")
        record.outcomes.append(failure_of(job, AttemptError(f"internal error: {type(exc).__name__}")))
    return None


def _must_end(session_id: str, deps: HandlerDeps) -> bool:
    """Whether the worker stops, or the lease under which the jobs were claimed is lost."""
    return deps.stopping.is_set() or deps.session.current() != session_id


def _prepare(job: ClaimedJob, deps: HandlerDeps) -> Prepared:
    assert job.version_id is not None
    payload = read_payload(job, deps.inputs)
    request = TaskRequest(
        id=job.id,
        kind=job.kind,
        version_id=job.version_id,
        options=job.options,
        inputs=payload.inputs,
        input_errors=payload.errors,
        priority=job.priority,
        deadline_at=job.deadline_at,
        is_alone=job.is_alone,
        num_losses=job.num_losses if job.is_alone else 0,
    )
    return Prepared(job, prepare(deps.library, request), payload.ids, frozenset(payload.errors))


def _plan(job: ClaimedJob, record: _Record, session_id: str, deps: HandlerDeps) -> None:
    """Cut the job's file into shards and record them: the attempt has ended then, and the job runs as its shards."""
    started_at = time.monotonic()
    with deps.in_flight.planning(job.id) as is_struck:
        planned = deps.planner.plan(job, must_end=lambda: is_struck() or _must_end(session_id, deps))
        if planned is None and _must_end(session_id, deps):
            record.unfinished.append(job)
            return
        if planned is None:  # struck by whoever cancelled the job
            deps.metrics.attempts.ended(job.kind, "cancelled")
            return
    is_recorded = _persist(lambda uow: _record_shards(uow, job, planned, deps), session_id, deps)
    if is_recorded is None:
        return  # whether it was recorded before the lease was lost is not known here: the payloads must stay
    if not is_recorded:
        deps.planner.drop(planned)
        raise StaleAttempt(f"the plan of {job.id} was overtaken; nothing is recorded")
    deps.metrics.attempts.ended(job.kind, "planned")
    log.info(
        "job.planned",
        num_inputs=planned.num_inputs,
        num_refused=planned.num_refused,
        num_shards=len(planned.shards),
        took_s=round(time.monotonic() - started_at, 3),
    )


def _import(job: ClaimedJob, record: _Record, session_id: str, deps: HandlerDeps) -> None:
    """Import a model, and record it as the version and the job's result."""
    with deps.in_flight.planning(job.id) as is_struck:
        is_done = deps.importer.run(job, must_end=lambda: is_struck() or _must_end(session_id, deps))
    if is_done:
        deps.metrics.attempts.ended(job.kind, "succeeded")
    elif _must_end(session_id, deps):
        record.unfinished.append(job)
    else:  # struck by whoever cancelled the job
        deps.metrics.attempts.ended(job.kind, "cancelled")


def _record_shards(uow: UnitOfWork, job: ClaimedJob, planned: PlannedShards, deps: HandlerDeps) -> bool:
    is_recorded = uow.shards.record(
        job.id,
        job.attempt,
        planned.shards,
        num_inputs=planned.num_inputs,
        estimated_tokens=planned.estimated_tokens,
    )
    uow.after_commit(lambda: deps.wake.wake([job.id]))
    return is_recorded


def _wait(works: list[Work], session_id: str, deps: HandlerDeps) -> bool:
    """Wait for all rows. True when the worker stops or the lease is lost first: what is not done is struck out."""
    for work in works:
        while not (work.is_over or work.done.wait(_WAIT_SLICE_S)):
            if _must_end(session_id, deps):
                for open_work in works:
                    open_work.strike()
                return True
    return False


def _store(record: _Record, session_id: str, deps: HandlerDeps) -> bool:
    """State and result in one transaction, all jobs of the message at once; then wake whoever waits.

    True when that transaction finished the message, too.
    """
    if not record.outcomes and not record.unfinished:
        return False
    started_at = time.monotonic()
    try:
        recorded = _write(record, session_id, deps)
    except Exception as exc:  # noqa: BLE001 - the handler's edge: a result that SQL refuses lets its neighbours end
        log.error("message.not_recorded", num_outcomes=len(record.outcomes), **_why_refused(exc))
        _store_one_by_one(record, session_id, deps)
        return False
    if recorded is None:
        return False
    store_s = time.monotonic() - started_at
    _count_stages(record.outcomes, store_s, deps)
    failures = [outcome for outcome in record.outcomes if isinstance(outcome, Failure)]
    log.info(
        "message.recorded",
        num_succeeded=len(record.outcomes) - len(failures),
        num_failed=len(failures),
        num_handed_back=len(record.unfinished),
        num_stale=len(record.outcomes) + len(record.unfinished) - len(recorded),
        store_s=round(store_s, 4),
    )
    for failure in failures:
        log.warning("attempt.failed", job_id=failure.job_id, attempt=failure.attempt, code=failure.error["code"])
    return record.finishes is not None


def _store_one_by_one(record: _Record, session_id: str, deps: HandlerDeps) -> None:
    singles = [_Record(record.kind, [outcome]) for outcome in record.outcomes]
    for one in [*singles, _Record(record.kind, [], record.unfinished)]:
        try:
            _write(one, session_id, deps)
        except Exception as exc:
            if not one.outcomes:
                raise
            log.error("attempt.not_recorded", job_id=one.outcomes[0].job_id, **_why_refused(exc))
            error = AttemptError(f"the result could not be recorded: {type(exc).__name__}")
            failed = Failure(one.outcomes[0].job_id, one.outcomes[0].attempt, error.as_dict())
            _write(_Record(record.kind, [failed]), session_id, deps)


def _why_refused(exc: Exception) -> dict[str, object]:
    """What may be logged of a result that SQL refuses: the database's own words quote rows."""
    return {"error": type(exc).__name__, "sqlstate": getattr(getattr(exc, "orig", None), "sqlstate", None)}


def _write(record: _Record, session_id: str, deps: HandlerDeps) -> list[str] | None:
    """Write the record and count what became of it; the ids that were recorded, None when the lease is lost."""
    recorded = _persist(lambda uow: _write_in(uow, record, deps), session_id, deps)
    if recorded is not None:
        _count_ends(record, set(recorded), deps)
    return recorded


def _write_in(uow: UnitOfWork, record: _Record, deps: HandlerDeps) -> list[str]:
    completions = [outcome for outcome in record.outcomes if isinstance(outcome, Completion)]
    failures = [outcome for outcome in record.outcomes if isinstance(outcome, Failure)]
    recorded = uow.attempts.complete(completions, worker=deps.worker)
    recorded += uow.attempts.fail(failures, max_retries=deps.max_attempts - 1, worker=deps.worker)
    recorded += uow.attempts.hand_back([(job.id, job.attempt) for job in record.unfinished])
    if record.finishes is not None:
        uow.ringing.finish(record.finishes)  # behind what is handed back: that is rung again
    uow.after_commit(lambda: deps.wake.wake(recorded, has_notices=uow.notices.num_added > 0))
    return recorded


def _count_ends(record: _Record, recorded: set[str], deps: HandlerDeps) -> None:
    attempts = deps.metrics.attempts
    written = [outcome for outcome in record.outcomes if outcome.job_id in recorded]
    num_failed = sum(isinstance(outcome, Failure) for outcome in written)
    num_back = sum(job.id in recorded for job in record.unfinished)
    attempts.ended(record.kind, "succeeded", len(written) - num_failed)
    attempts.ended(record.kind, "failed", num_failed)
    attempts.ended(record.kind, "handed_back", num_back)
    attempts.refused(record.kind, len(record.outcomes) + len(record.unfinished) - len(recorded))


def _count_stages(outcomes: list[Outcome], store_s: float, deps: HandlerDeps) -> None:
    timings = [outcome.timings for outcome in outcomes if outcome.timings]
    for stage in _STAGES:
        deps.metrics.stages.took(stage, "job", [timing[f"{stage}_s"] for timing in timings])
    deps.metrics.stages.took("store", "job", (store_s,))


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
