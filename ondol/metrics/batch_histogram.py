"""A histogram that takes many values under one lock, so that a message of 64 jobs costs little more than one job."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class BatchHistogram(Collector):
    """Counts of values by bucket (each bucket's upper bound belongs to it), and their sum. Thread-safe."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        *,
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = tuple(labels)
        self._bounds = tuple(bounds)
        self._series: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}
        self._lock = threading.Lock()
        registry.register(self)

    def observe(self, values: Iterable[float], *labels: str) -> None:
        """Take values of one series in."""
        self.observe_counted([(value, 1) for value in values], *labels)

    def observe_counted(self, values: Iterable[tuple[float, int]], *labels: str) -> None:
        """Take values of one series in, each so many times."""
        bounds = self._bounds
        with self._lock:
            series = self._series.get(labels)
            if series is None:
                series = self._series[labels] = ([0] * (len(bounds) + 1), [0.0])
            counts, total = series
            for value, num in values:
                counts[bisect_left(bounds, value)] += num
                total[0] += value * num

    def describe(self) -> Iterable[Metric]:
        """The family without its series."""
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        """The family with all series."""
        family = self._family()
        with self._lock:
            taken = [(labels, tuple(counts), total[0]) for labels, (counts, total) in self._series.items()]
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, counts, total_value in taken:
            buckets: list[tuple[str, float]] = []
            num = 0
            for name, count in zip(names, counts, strict=True):
                num += count
                buckets.append((name, num))
            family.add_metric(labels, buckets, total_value)
        return [family]

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
