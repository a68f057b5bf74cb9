"""The state of the whole system, which lives in SQL: looked up when somebody scrapes, every few seconds at most.

Every process that shows it shows the same: take the maximum over them, never the sum.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

MAX_AGE_S = 3.0
_MAX_SHARE_OF_A_THREAD = 0.05
"""A look that takes long is kept longer, so that looking stays a small load."""


class SystemState(Protocol):
    """What a look finds; see `ondol.sql.measures`."""

    @property
    def num_queued(self) -> Mapping[str, int]:
        """Queued jobs by queue: a class, or `fine-tune`."""

    @property
    def oldest_s(self) -> Mapping[str, float]:
        """How long the oldest job that could run has waited, by queue."""

    @property
    def num_running(self) -> Mapping[str, int]:
        """Running jobs by kind."""

    @property
    def num_ready_workers(self) -> Mapping[str, int]:
        """Ready sessions by role."""

    @property
    def repairs(self) -> Mapping[str, int]:
        """Repairs ever made, by kind."""

    @property
    def num_notices(self) -> Mapping[str, int]:
        """Notices that are still to be delivered, by channel."""

    @property
    def leaderless_s(self) -> float | None:
        """How long no reconciler has led; None where none ever did."""


class SystemMetrics(Collector):
    """Families made of the last look; `look` None or nothing to tell: no series. Thread-safe.

    `collect` looks by itself where `look` is given; where it must not block, `refresh` is called from elsewhere.
    """

    def __init__(self, registry: CollectorRegistry, look: Callable[[], SystemState | None]) -> None:
        self._look = look
        self._state: SystemState | None = None
        self._fresh_until = 0.0
        self._lock = threading.Lock()
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """The families without their series."""
        return _families(None)

    def collect(self) -> Iterable[Metric]:
        """The families of a state a few seconds old at most; blocks while it looks."""
        with self._lock:
            begun = time.monotonic()
            if begun >= self._fresh_until:
                self._state = self._look()
                took_s = time.monotonic() - begun
                self._fresh_until = begun + took_s + max(MAX_AGE_S, took_s / _MAX_SHARE_OF_A_THREAD)
            return _families(self._state)


def _families(state: SystemState | None) -> list[Metric]:
    queued = GaugeMetricFamily(
        "ondol_queue_jobs", "Jobs that are queued, by class; fine-tunes in a queue of their own.", labels=("queue",)
    )
    oldest = GaugeMetricFamily(
        "ondol_queue_oldest_seconds", "How long the oldest queued job that may run has waited.", labels=("queue",)
    )
    running = GaugeMetricFamily("ondol_jobs_running", "Jobs that run now.", labels=("kind",))
    ready = GaugeMetricFamily(
        "ondol_workers_ready", "Workers and trainer nodes that take work now, by role.", labels=("role",)
    )
    repairs = CounterMetricFamily(
        "ondol_repairs", "Repairs ever made, by kind; kept in SQL, so that they outlive processes.", labels=("kind",)
    )
    notices = GaugeMetricFamily(
        "ondol_notices_waiting", "Ends of jobs that somebody is still to be told of.", labels=("channel",)
    )
    leaderless = GaugeMetricFamily(
        "ondol_leaderless_seconds", "How long no reconciler has led; 0 while one does, and nothing is repaired else."
    )
    if state is not None:
        if state.leaderless_s is not None:
            leaderless.add_metric((), state.leaderless_s)
        for family, values in (
            (queued, state.num_queued),
            (oldest, state.oldest_s),
            (running, state.num_running),
            (ready, state.num_ready_workers),
            (repairs, state.repairs),
            (notices, state.num_notices),
        ):
            for label, value in values.items():
                family.add_metric((label,), value)
    return [queued, oldest, running, ready, repairs, notices, leaderless]
