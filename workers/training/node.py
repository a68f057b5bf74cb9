"""The handler of a trainer node: claim one fine-tune, check its files or train it, record how it ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from ondol.broker.wake import WakeBus
from ondol.contract.errors import (
    AttemptError,
    DatabaseUnavailable,
    HandedBack,
    ModelStoreError,
    OndolError,
    StaleAttempt,
)
from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState, Reason
from ondol.control.ringer import Ringer
from ondol.logs import log_context
from ondol.metrics.roles import TrainerMetrics
from ondol.sql.database import Database
from ondol.sql.models import Published
from ondol.sql.records import CheckpointRecord, ClaimedTraining, Failure
from ondol.sql.unit_of_work import UnitOfWork
from workers.claims import Claims
from workers.session import SessionKeeper
from workers.training.check_run import run_check
from workers.training.checkpointing import Checkpointer
from workers.training.plan import TrainPlan, TrainReport, parse_report, report_as_dict
from workers.training.publishing import Publisher, Trained, completion
from workers.training.reporting import Reporter
from workers.training.struck import StruckJobs
from workers.training.supervisor import Ended, Ending, Supervisor, Watch
from workers.training.workspace import Host, Stores, Workspace

log = structlog.get_logger(__name__)

T = TypeVar("T")
_RETRY_PAUSE_S = 0.5
_LOOK_EVERY_S = 2.0
_FIRST_BACKOFF_S = 2.0
_MAX_DOUBLINGS = 6
_KIND = JobKind.FINE_TUNE.value


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """How patient the node is."""

    max_attempts: int
    grace_s: float
    check_limit_s: float
    check_memory_mb: int
    train_stall_s: float


@dataclass(frozen=True, slots=True)
class NodeDeps:
    """What the handler works with; built once in `workers.training.main`."""

    database: Database
    stores: Stores
    session: SessionKeeper
    claims: Claims
    ringer: Ringer
    wake: WakeBus
    publisher: Publisher
    struck: StruckJobs
    host: Host
    root: Path
    worker: str
    limits: NodeLimits
    stopping: threading.Event
    metrics: TrainerMetrics


def handle_training(message_id: str, deps: NodeDeps) -> None:
    """Run the fine-tune that the message rang, if this session can claim it."""
    session_id = deps.session.current()
    if session_id is None:
        return  # no lease to claim under: the reconciler rings again
    deps.claims.begin(message_id)
    job: ClaimedTraining | None = None
    try:
        if not deps.stopping.is_set():
            job = deps.database.write(
                lambda uow: uow.training.claim(message_id, session_id=session_id, worker=deps.worker)
            )
        if job is not None:
            deps.claims.add([job])
            deps.wake.wake([job.id])
            if not job.is_check:
                deps.metrics.attempts.claimed(_KIND, _KIND)
            with log_context(job_id=job.id, attempt=job.attempt, kind=_KIND, worker=deps.worker, message_id=message_id):
                _run(job, deps)
    finally:
        # A message may come twice (Redis answered too late): the lane is free when the handler that trains is done.
        if deps.claims.end(message_id, [job] if job is not None else []):
            _persist(lambda uow: uow.ringing.finish(message_id), deps)
        if not deps.stopping.is_set():
            deps.ringer.ring_soon()


def _run(job: ClaimedTraining, deps: NodeDeps) -> None:
    """One attempt from claim to end. Every way out leaves the job in another state, or in another's hands."""
    try:
        with deps.struck.watching(job.id) as struck, Workspace(deps.root, job, deps.stores, deps.host) as workspace:
            (_check if job.is_check else _train)(job, workspace, struck, deps)
    except StaleAttempt as exc:
        log.info("attempt.stale", reason=exc.message)
        _count(job, "", False, deps)
    except (DatabaseUnavailable, HandedBack):  # an outage, or our own end, is nobody's failure
        _hand_back(job, deps)
    except OndolError as exc:
        _fail(job, exc, deps)
    except Exception as exc:  # the handler's edge: a fault of ours fails this job, and the node goes on
        log.exception("attempt.crashed")
        _fail(job, AttemptError(f"internal error: {type(exc).__name__}"), deps)
    _release_device(job, deps)
    deps.wake.wake([job.id])


def _release_device(job: ClaimedTraining, deps: NodeDeps) -> None:
    """Only now, with every process of the attempt gone, is the device free, and nothing more is stored for the job."""

    def release(uow: UnitOfWork) -> bool:
        uow.training.device_released(job.id, job.attempt)
        return job.id in uow.jobs.states_of([job.id])

    if _persist(release, deps) is False:  # deleted while it still ended: what was stored since is nobody's
        try:
            deps.stores.checkpoints.delete_all(job.id)
        except ModelStoreError as exc:
            log.warning("checkpoints.not_deleted", job_id=job.id, reason=exc.message)


def _check(job: ClaimedTraining, workspace: Workspace, struck: threading.Event, deps: NodeDeps) -> None:
    workspace.prepare()
    report = _run_check(job, workspace, struck, deps)
    if report is None:
        _hand_back(job, deps)
        return
    resolved = _resolve(report)

    def write(uow: UnitOfWork) -> bool:
        for warning in report.warnings:
            data = {"message": warning, "level": "warn"}
            uow.events.append(job.id, attempt=job.attempt, type="message", data=data)
        uow.events.append(job.id, attempt=job.attempt, type="message", data=_report_event(report))
        if not uow.training.validated(job.id, job.attempt, resolved, worker=deps.worker):
            return False
        if workspace.options.validate_only:
            uow.training.begin_after_check(job.id, job.attempt, worker=deps.worker)
            result = _only_validated(resolved)
            uow.attempts.complete([completion(job, result, {})], worker=deps.worker)
        return True

    if not _persist(write, deps):
        raise StaleAttempt(f"the check of {job.id} is no longer current")
    _count(job, "passed", True, deps)


def _train(job: ClaimedTraining, workspace: Workspace, struck: threading.Event, deps: NodeDeps) -> None:
    started_at = time.monotonic()
    plan = workspace.prepare()
    job = _with_resolved(job, workspace, struck, deps)
    assert job.resolved is not None
    if workspace.options.validate_only:  # a retry of a check that failed
        result = _only_validated(job.resolved)
        done = _persist(lambda uow: uow.attempts.complete([completion(job, result, {})], worker=deps.worker), deps)
        _count(job, "succeeded", None if done is None else bool(done), deps)
        return
    reporter = Reporter(deps.database, deps.wake, job)
    plan = workspace.to_train(
        plan,
        parse_report(job.resolved["report"]),
        threads=int(job.resolved["threads"]),
        on_damage=lambda record, reason: _skip_damaged(record, reason, reporter, deps),
    )
    limit_s = workspace.options.max_runtime_s
    watch = Watch(
        is_stopping=deps.stopping.is_set,
        has_lease=lambda: deps.session.current() is not None,
        struck=struck,
        grace_s=deps.limits.grace_s,
        limit_s=None if limit_s is None else max(1.0, limit_s - job.trained_s),
        stall_s=deps.limits.train_stall_s,
    )
    cpu_s = time.process_time()
    made = Checkpointer(
        deps.stores.checkpoints, deps.database, reporter, job, on_committed=deps.metrics.checkpoint_committed
    )
    with closing(made) as checkpointer, deps.metrics.running.track_inprogress():
        supervisor = Supervisor(
            job=job,
            plan=plan,
            database=deps.database,
            reporter=reporter,
            checkpointer=checkpointer,
            watch=watch,
            on_steps=deps.metrics.steps_done,
            keep_fds=() if deps.host.lock_fd is None else (deps.host.lock_fd,),
        )
        ended = supervisor.run()
    timings = {
        "queue_wait_s": round(max(0.0, job.claimed_at - job.created_at), 3),
        "train_s": round(time.monotonic() - started_at, 3),
        "supervisor_cpu_s": round(time.process_time() - cpu_s, 3),
    }
    for stage in ("queue_wait", "train"):
        deps.metrics.stages.took(stage, "job", (timings[f"{stage}_s"],))
    _conclude(job, plan, ended, timings, deps)


def _conclude(job: ClaimedTraining, plan: TrainPlan, ended: Ended, timings: dict[str, float], deps: NodeDeps) -> None:
    if ended.how is Ending.FINISHED:
        assert job.resolved is not None
        overhead = ended.event.get("overhead") or {}
        timings |= {f"child_{name}": round(float(value), 3) for name, value in overhead.items()}
        trained = Trained(ended.event, plan, job.resolved.get("alias_seen"), timings)
        published = _publish(job, trained, deps)
        _count(job, "succeeded", None if published is None else True, deps)
    elif ended.how is Ending.HANDED_BACK:
        _hand_back(job, deps)
    elif ended.how is Ending.PAUSED:
        is_paused = _persist(lambda uow: uow.training.pause(job.id, job.attempt, worker=deps.worker), deps)
        _count(job, "paused", is_paused, deps)
    elif ended.how is Ending.DIED:
        error = {"code": "worker_lost", "message": ended.reason, "param": None}
        log.warning("trainer.lost", code=error["code"], is_stalled=ended.is_stalled)  # its last lines may quote texts
        _count(job, "lost", _persist(lambda uow: _lose(uow, job, error, ended.is_stalled, deps), deps), deps)
    else:
        _count(job, "", False, deps)


def _publish(job: ClaimedTraining, trained: Trained, deps: NodeDeps) -> Published | None:
    """None: the node had to stop while SQL was away."""
    manifest = _until_written(lambda: deps.publisher.store_files(trained), deps)
    return None if manifest is None else _until_written(partial(deps.publisher.record, job, trained, manifest), deps)


def _lose(uow: UnitOfWork, job: ClaimedTraining, error: dict[str, Any], is_stalled: bool, deps: NodeDeps) -> bool:
    data = {"message": error["message"], "level": "warn"}
    uow.events.append(job.id, attempt=job.attempt, type="message", data=data)
    is_lost = uow.attempts.lose(job.id, job.attempt, error, worker=deps.worker)
    uow.leaders.count_repairs("trainer_stalled", int(is_stalled and is_lost))
    return is_lost


def _with_resolved(
    job: ClaimedTraining, workspace: Workspace, struck: threading.Event, deps: NodeDeps
) -> ClaimedTraining:
    """The job with its frozen configuration. The first training adds its threads, and where the alias points now."""
    resolved = job.resolved
    if resolved is None:  # a retry of a job whose files were refused before
        report = _run_check(job, workspace, struck, deps)
        if report is None:
            raise HandedBack(f"the check of {job.id} was given up")
        resolved = _resolve(report)
    if "alias_seen" not in resolved:
        options = workspace.options
        seen = None
        if options.alias is not None:
            alias = options.alias
            seen = deps.database.read(lambda uow: uow.models.alias_target(job.project_id, options.output_name, alias))
        resolved = resolved | {"alias_seen": seen, "threads": deps.host.threads}
    if resolved is not job.resolved and not deps.database.write(
        lambda uow: uow.training.set_resolved(job.id, job.attempt, resolved)
    ):
        raise StaleAttempt(f"attempt {job.attempt} at {job.id} is no longer current")
    return replace(job, resolved=resolved)


def _run_check(
    job: ClaimedTraining, workspace: Workspace, struck: threading.Event, deps: NodeDeps
) -> TrainReport | None:
    """The report of the files; None when the node stops, or the job is no longer wanted, before it is there."""
    looked_at = time.monotonic()

    def must_end() -> bool:
        nonlocal looked_at
        if struck.is_set() or time.monotonic() - looked_at > _LOOK_EVERY_S:  # a hint may be lost
            struck.clear()
            looked_at = time.monotonic()
            is_current, _ = deps.database.read(lambda uow: uow.training.status(job.id, job.attempt))
            if not is_current:
                raise StaleAttempt(f"attempt {job.attempt} at {job.id} is no longer current")
        return deps.stopping.is_set() or deps.session.current() is None

    return run_check(
        workspace.plan_path,
        timeout_s=deps.limits.check_limit_s,
        memory_mb=deps.limits.check_memory_mb,
        must_end=must_end,
    )


def _resolve(report: TrainReport) -> dict[str, Any]:
    return {"report": report_as_dict(report), "max_steps": report.max_steps}


def _only_validated(resolved: dict[str, Any]) -> dict[str, Any]:
    return {"object": "fine_tune.result", "model": None, "report": resolved["report"]}


def _report_event(report: TrainReport) -> dict[str, Any]:
    content = report_as_dict(report)
    return {
        "message": (
            f"the files are good: {report.num_train} training and {report.num_validation} validation rows, "
            f"{len(report.labels)} labels, {report.max_steps} steps"
        ),
        "report": content,
    }


def _skip_damaged(record: CheckpointRecord, reason: str, reporter: Reporter, deps: NodeDeps) -> None:
    reporter.say(
        f"checkpoint_corrupt: the checkpoint of step {record.step} is damaged or torn; the one before it is taken",
        level="warn",
        step=record.step,
        reason=reason,
    )
    deps.database.write(lambda uow: uow.checkpoints.forget(record))


def _hand_back(job: ClaimedTraining, deps: NodeDeps) -> None:
    def write(uow: UnitOfWork) -> bool:
        if job.is_check:
            return uow.training.give_back_check(job.id, job.attempt)
        return uow.attempts.end_as(
            job.id, job.attempt, JobState.QUEUED, Reason.HANDED_BACK, outcome="handed_back", worker=deps.worker
        )

    _count(job, "handed_back", _persist(write, deps), deps)


def _fail(job: ClaimedTraining, error: OndolError, deps: NodeDeps) -> None:
    """The attempt failed; a retryable error queues the job again, with a pause that doubles."""
    log.warning("attempt.failed", code=error.code, param=error.param)  # the message may quote what a file says

    backoff_s = _FIRST_BACKOFF_S * 2 ** min(job.attempt - 1, _MAX_DOUBLINGS)
    max_retries, details = deps.limits.max_attempts - 1, error.as_dict()

    def write(uow: UnitOfWork) -> bool:
        if job.is_check:
            is_put_off = error.retryable and uow.training.put_off_check(
                job.id, job.attempt, details, after_s=backoff_s, max_retries=max_retries
            )
            return is_put_off or uow.training.refuse(job.id, job.attempt, details, worker=deps.worker)
        failure = Failure(job.id, job.attempt, details, backoff_s if error.retryable else None)
        return bool(uow.attempts.fail([failure], max_retries=max_retries, worker=deps.worker))

    _count(job, "failed", _persist(write, deps), deps)


def _count(job: ClaimedTraining, outcome: str, is_written: bool | None, deps: NodeDeps) -> None:
    """Count how the attempt or check ended; not written: it is stale; None: nobody knows, for the lease will lapse."""
    if is_written is None:
        return
    if job.is_check:
        deps.metrics.check_ended(outcome if is_written else "stale")
    elif is_written:
        deps.metrics.attempts.ended(_KIND, outcome)
    else:
        deps.metrics.attempts.refused(_KIND)


def _persist(work: Callable[[UnitOfWork], T], deps: NodeDeps) -> T | None:
    """Write, waiting out an outage of SQL. None: the node had to stop first, and the lease will lapse."""
    return _until_written(lambda: deps.database.write(work), deps)


def _until_written(write: Callable[[], T], deps: NodeDeps) -> T | None:
    while True:
        try:
            return write()
        except DatabaseUnavailable as exc:
            if deps.stopping.is_set():
                log.warning("attempt.given_up", reason=exc.message)
                return None
            deps.stopping.wait(_RETRY_PAUSE_S)
