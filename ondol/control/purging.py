"""When which step of purging is taken: a little in each round of the acting reconciler, until nothing is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from ondol.metrics.purging import PurgeMetrics
from ondol.settings import RetentionSettings
from ondol.sql.database import Database
from ondol.sql.purging import Part, Step
from ondol.sql.unit_of_work import UnitOfWork

log = structlog.get_logger(__name__)

DAY_S = 86_400.0
_KEEP_SESSIONS_S = 7 * DAY_S
_KEEP_TRACES_S = 90 * DAY_S
"""How long it is told of jobs and files that they were there once."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things are kept, in seconds: parts of jobs and jobs from their end, files from their upload.

    None keeps them. `round_s`: longest that one round purges; `pause_s`: how long it rests when nothing is left.
    """

    inputs_s: float | None = None
    results_s: float | None = None
    events_s: float | None = None
    jobs_s: float | None = None
    files_s: float | None = None
    round_s: float = 0.5
    pause_s: float = 60.0


def retention_of(settings: RetentionSettings) -> Retention:
    """What the settings say, in seconds."""
    return Retention(
        inputs_s=_seconds(settings.keep_inputs_days),
        results_s=_seconds(settings.keep_results_days),
        events_s=_seconds(settings.keep_events_days),
        jobs_s=_seconds(settings.keep_jobs_days),
        files_s=_seconds(settings.keep_files_days),
    )


class Purger:
    """`purge()` in every round of the reconciler. `lead` renews and checks the lead in the transaction of each step."""

    def __init__(
        self,
        database: Database,
        *,
        retention: Retention,
        lead: Callable[[UnitOfWork], bool],
        metrics: PurgeMetrics | None = None,
    ) -> None:
        self._database = database
        self._retention = retention
        self._lead = lead
        self._metrics = metrics
        self._steps = _steps(retention)
        self._turn = 0
        self._num_idle = 0
        self._rests_until = 0.0

    def purge(self) -> int:
        """Steps until the round's time is over or nothing is left; how much was deleted. DatabaseUnavailable."""
        began_at = time.monotonic()
        num = 0
        while began_at >= self._rests_until and time.monotonic() - began_at < self._retention.round_s:
            what, step = self._steps[self._turn % len(self._steps)]
            self._turn += 1  # first: one that fails does not stand in the way of the others
            done = self._database.write(lambda uow, step=step: step(uow) if self._lead(uow) else None)  # type: ignore[misc]  # bound at definition
            if done is None:
                return num
            num += done.num
            if done.num:
                log.info("purge.step", what=what, num=done.num)
                if self._metrics is not None:
                    self._metrics.purged(what, done.num)
            self._go_on(done)
        return num

    def _go_on(self, done: Step) -> None:
        """The same step again while it has more to do, but not before the others had their turn."""
        self._num_idle = 0 if done.may_be_more else self._num_idle + 1
        if self._num_idle >= len(self._steps):
            self._num_idle = 0
            self._rests_until = time.monotonic() + self._retention.pause_s


def _seconds(days: float) -> float | None:
    return days * DAY_S if days else None


def _steps(kept: Retention) -> list[tuple[str, Callable[[UnitOfWork], Step]]]:
    parts = {Part.EVENTS: kept.events_s, Part.INPUTS: kept.inputs_s, Part.RESULTS: kept.results_s}
    steps: list[tuple[str, Callable[[UnitOfWork], Step]]] = []
    for part, age_s in parts.items():
        if age_s is not None:
            steps.append((part.value, lambda uow, p=part, age=age_s: uow.purging.purge_part(p, older_than_s=age)))  # type: ignore[misc]  # bound at definition
    jobs_s = kept.jobs_s
    if jobs_s is not None:
        steps.append(("jobs", lambda uow: uow.purging.purge_jobs(older_than_s=jobs_s)))
    steps += [
        ("files", lambda uow: uow.purging.purge_files(older_than_s=kept.files_s)),
        ("sessions", lambda uow: uow.purging.purge_sessions(older_than_s=_KEEP_SESSIONS_S)),
        ("traces", lambda uow: uow.purging.purge_traces(older_than_s=_KEEP_TRACES_S)),
    ]
    return steps
