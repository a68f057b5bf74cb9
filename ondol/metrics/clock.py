"""The clock of a process beside the database's."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class ClockMetric(Collector):
    """`ondol_clock_ahead_seconds`; no series until it is known."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ahead_s: Callable[[], float | None] = lambda: None
        registry.register(self)

    def watch(self, ahead_s: Callable[[], float | None]) -> None:
        """Where to look; called on the thread that answers a scrape."""
        self._ahead_s = ahead_s

    def describe(self) -> Iterable[Metric]:
        """The family without its series."""
        return [_family()]

    def collect(self) -> Iterable[Metric]:
        """The family as it stands now."""
        family, ahead_s = _family(), self._ahead_s()
        if ahead_s is not None:
            family.add_metric((), ahead_s)
        return [family]


def _family() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "ondol_clock_ahead_seconds",
        "This process's clock minus the database's, as last seen; 0 with SQLite, which has its host's.",
    )
