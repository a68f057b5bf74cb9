"""One training under one attempt: starts the child, passes on what it reports, ends it when it must end.

The child goes on only while the attempt is surely ours: without a lease it waits at its next step, and goes on if the
attempt is still current when SQL answers again. Whatever happens, its process group is gone when `run` returns.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import structlog

from ondol.contract.errors import AttemptTimedOut, DatabaseUnavailable, DeviceError, StaleAttempt
from ondol.sql.database import Database
from ondol.sql.records import ClaimedTraining
from workers.training.checkpointing import Checkpointer
from workers.training.child_process import ChildProcess, Event
from workers.training.gate import GateKeeper
from workers.training.plan import PLAN_FILE, TrainPlan
from workers.training.reporting import Reporter
from workers.training.stall import StallWatch

log = structlog.get_logger(__name__)

_LOOK_S = 0.2
_STATUS_EVERY_S = 1.0
_LOG_EVERY_S = 1.0
_EXIT_LIMIT_S = 30.0
_TIMED_OUT_GRACE_S = 60.0


class Ending(Enum):
    """How a run of the child ended."""

    FINISHED = "finished"
    HANDED_BACK = "handed_back"
    PAUSED = "paused"
    TIMED_OUT = "timed_out"
    DIED = "died"
    STALE = "stale"


@dataclass(frozen=True, slots=True)
class Ended:
    """The outcome: with FINISHED the child's last event; with DIED what is known of the reason."""

    how: Ending
    event: Event = field(default_factory=dict)
    reason: str = ""
    is_stalled: bool = False
    """It was ended because it took no step any more."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What the supervisor keeps an eye on besides the child."""

    is_stopping: Callable[[], bool]
    """The node was told to stop."""
    has_lease: Callable[[], bool]
    struck: threading.Event
    """A hint that the job was cancelled, or that a pause was asked for."""
    grace_s: float
    limit_s: float | None
    """Seconds that this attempt may still train."""
    stall_s: float
    """Silence that is borne at least; see `workers.training.stall`."""


class TrainingFailed(DeviceError):
    """The child gave up; its code and message say why."""

    code = "training_failed"


class Supervisor:
    """Runs the child of one attempt; `run` blocks for as long as it trains. `on_steps`: it is so many steps further."""

    def __init__(
        self,
        *,
        job: ClaimedTraining,
        plan: TrainPlan,
        database: Database,
        reporter: Reporter,
        checkpointer: Checkpointer,
        watch: Watch,
        on_steps: Callable[[int], None],
        keep_fds: tuple[int, ...] = (),
    ) -> None:
        self._keep_fds = keep_fds
        self._stall: StallWatch
        self._why_stalled: str | None = None
        self._on_steps = on_steps
        self._num_steps = 0
        self._job = job
        self._plan = plan
        self._database = database
        self._reporter = reporter
        self._checkpointer = checkpointer
        self._watch = watch
        self._gate = GateKeeper(plan.gate) if plan.gate is not None else None
        self._wanted: Ending | None = None
        self._final: Event | None = None
        self._final_at = 0.0
        self._grace_began_at: float | None = None
        self._is_held = False
        self._started_at = time.monotonic()
        self._status_at = self._started_at
        self._log_at = self._started_at

    def run(self) -> Ended:
        """Train to an end. Raises TrainingFailed and store errors; a stale attempt is an ending, not an error."""
        plan = self._plan
        child = ChildProcess(
            plan.work_dir / PLAN_FILE, threads=plan.threads, device=plan.device, keep_fds=self._keep_fds
        )
        self._stall = StallWatch(self._watch.stall_s, cpu_s=child.cpu_s, now=time.monotonic())
        log.info("trainer.started", pid=child.pid)
        try:
            self._follow(child)
            return self._conclude(child)
        except StaleAttempt:
            return Ended(Ending.STALE)
        finally:
            code = child.end()
            self._checkpointer.close()
            if self._gate is not None:
                self._gate.release()
                self._gate.close()
            log.info("trainer.ended", exit_code=code)

    def _follow(self, child: ChildProcess) -> None:
        """Until the child has said all and every checkpoint is committed."""
        while not (child.has_said_all and not self._checkpointer.is_busy and not self._reporter.has_unwritten):
            event = child.next_event(_LOOK_S)
            if event is not None:
                self._take(event)
            elif child.has_said_all:
                threading.Event().wait(_LOOK_S)
            self._look(child)

    def _conclude(self, child: ChildProcess) -> Ended:
        code = child.wait(_EXIT_LIMIT_S)
        final = self._final or {}
        if final.get("event") == "failed":
            error = final["error"]
            raise TrainingFailed(error["message"], param=error.get("param"), code=error["code"])
        if final.get("event") == "finished":
            return Ended(Ending.FINISHED, final)
        if self._wanted is Ending.TIMED_OUT:
            raise AttemptTimedOut("the training took longer than options.max_runtime_s allows")
        if final.get("event") == "stopped":  # without our asking: a service manager sends SIGTERM to all of us
            return Ended(self._wanted or Ending.HANDED_BACK)
        if self._wanted is Ending.HANDED_BACK or self._watch.is_stopping():
            return Ended(Ending.HANDED_BACK)  # before its first step, or the grace was over: an earlier checkpoint does
        if self._wanted is Ending.PAUSED and code == -signal.SIGTERM:
            return Ended(Ending.PAUSED)
        if self._why_stalled is not None:
            return Ended(Ending.DIED, reason=f"the trainer was ended: {self._why_stalled}", is_stalled=True)
        return Ended(Ending.DIED, reason=_how_it_died(code, child))

    def _take(self, event: Event) -> None:
        """Pass one event on."""
        kind = event["event"]
        self._stall.heard(event)
        self._count_steps(int(event.get("step") or 0))
        if kind in ("finished", "stopped", "failed"):
            self._final, self._final_at = event, time.monotonic()
        elif kind == "started":
            self._say_started(event)
        elif kind == "metrics":
            self._reporter.measure({"phase": "train", **_without_kind(event)})
            self._reporter.progress(int(event["step"]), int(event.get("max_steps") or self._max_steps()))
        elif kind == "evaluation":
            self._reporter.measure({"phase": "evaluation", **_without_kind(event)})
        elif kind == "checkpoint":
            folder = Path(event["folder"])
            folder = folder if folder.is_absolute() else self._plan.work_dir / folder
            self._checkpointer.add(int(event["step"]), folder, metrics=event["metrics"], is_best=bool(event["is_best"]))
        elif kind != "pulse":
            log.warning("trainer.event_unknown", kind=kind)

    def _say_started(self, event: Event) -> None:
        step = event.get("resumed_from")
        self._num_steps = int(step or 0)
        begun = f"training goes on from step {step}" if step else "training begins"
        self._reporter.say(f"{begun}, to step {event['max_steps']}", **_without_kind(event))
        if event.get("resume_inexact"):
            self._reporter.say(
                "resume_inexact: this device, its threads or its number format differ from those of the checkpoint; "
                "the weights will be close to those of an uninterrupted run, not equal"
            )
        self._reporter.progress(int(step or 0), int(event["max_steps"]))

    def _count_steps(self, step: int) -> None:
        if step > self._num_steps:
            self._on_steps(step - self._num_steps)
            self._num_steps = step

    def _look(self, child: ChildProcess) -> None:
        """Everything that may end or hold the child."""
        now = time.monotonic()
        self._checkpointer.look()
        self._reporter.flush()
        if now - self._log_at >= _LOG_EVERY_S or child.has_said_all:
            self._log_at = now
            self._reporter.log(child.log.take())
        has_lease = self._watch.has_lease()
        if self._gate is not None and not has_lease:
            self._gate.hold(child.pid)
            self._is_held = True
        is_due = self._is_held or self._watch.struck.is_set() or now - self._status_at >= _STATUS_EVERY_S
        if has_lease and is_due:
            self._watch.struck.clear()
            self._status_at = now
            self._look_at_status(child)
        if self._watch.is_stopping():
            self._stop(child, Ending.HANDED_BACK, self._watch.grace_s)
        if self._watch.limit_s is not None and now - self._started_at > self._watch.limit_s:
            self._stop(child, Ending.TIMED_OUT, _TIMED_OUT_GRACE_S)
        if self._final is not None and now - self._final_at > _EXIT_LIMIT_S and not child.has_said_all:
            log.warning("trainer.does_not_exit", job_id=self._job.id, pid=child.pid)
            child.end()
        self._look_for_a_stall(child, now)

    def _look_for_a_stall(self, child: ChildProcess, now: float) -> None:
        """End a child that hangs; what it has written to the pipe is still taken."""
        why = self._stall.look(now)
        if why is None or self._why_stalled is not None or self._final is not None or child.has_said_all:
            return
        self._why_stalled = why
        log.error("trainer.stalled", pid=child.pid, reason=why, cure="it is ended, and resumes from its checkpoint")
        child.end()

    def _look_at_status(self, child: ChildProcess) -> None:
        try:
            is_current, is_pause_wanted = self._database.read(
                lambda uow: uow.training.status(self._job.id, self._job.attempt)
            )
        except DatabaseUnavailable as exc:
            log.warning("trainer.status_unknown", reason=exc.message)
            return
        if not is_current:
            raise StaleAttempt(f"attempt {self._job.attempt} at {self._job.id} is no longer current")
        if self._gate is not None and self._is_held:
            self._gate.release()
            self._is_held = False
        if is_pause_wanted:
            self._stop(child, Ending.PAUSED, None)

    def _stop(self, child: ChildProcess, why: Ending, grace_s: float | None) -> None:
        """Ask the child to stop, the first reason counts; end it when the grace is over."""
        if self._final is not None:
            return
        if self._wanted is None:
            self._wanted = why
            self._reporter.log([f"the trainer is asked to stop: {why.value}"])
        child.ask_to_stop()
        if grace_s is None:
            return
        if self._grace_began_at is None:
            self._grace_began_at = time.monotonic()
        if time.monotonic() - self._grace_began_at > grace_s:
            child.end()

    def _max_steps(self) -> int:
        assert self._plan.report is not None
        return self._plan.report.max_steps


def _without_kind(event: Event) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "event"}


def _how_it_died(code: int | None, child: ChildProcess) -> str:
    how = "did not exit" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"
    hint = (
        "; SIGKILL without anybody's doing is most often a lack of memory: a smaller batch or shorter max_length helps"
    )
    tail = " | ".join(child.log.last[-3:])
    return f"the trainer ended with {how}{hint if code == -9 else ''}" + (f"; its last lines: {tail}" if tail else "")
