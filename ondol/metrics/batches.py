"""What went through the models of a device, by class; counted once a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter

from ondol.metrics.batch_histogram import BatchHistogram

BATCH_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


@dataclass(slots=True)
class RowsOfClass:
    """The rows of one class in a batch. `waited_s`: seconds from arrival to the batch, and of how many rows."""

    num_rows: int = 0
    num_tokens: int = 0
    num_shared: int = 0
    waited_s: list[tuple[float, int]] = field(default_factory=list)


class BatchMetrics:
    """What went through the models of a device."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._batches = Counter(
            "ondol_batches_total",
            "Batches run, by why they were closed: full (the next row did not fit), drained (nothing more waited for "
            "the model), alone (it needs the device for itself).",
            ("release",),
            registry=registry,
        )
        self._rows = Counter("ondol_batch_rows_total", "Rows of the batches run.", ("class",), registry=registry)
        self._tokens = Counter(
            "ondol_batch_tokens_total", "Tokens of the batches run, padding apart.", ("class",), registry=registry
        )
        self._shared = Counter(
            "ondol_batch_shared_rows_total",
            "Rows that were not run because an identical one was in a batch; by that one's class.",
            ("class",),
            registry=registry,
        )
        self._wait_s = BatchHistogram(
            "ondol_batch_wait_seconds",
            "Seconds that the rows of the batches run waited in the batcher.",
            ("class",),
            bounds=BATCH_BOUNDS_S,
            registry=registry,
        )
        self._padding = Counter(
            "ondol_batch_padding_tokens_total",
            "Padding that went through models besides the tokens.",
            registry=registry,
        )
        self._budget = Counter(
            "ondol_batch_budget_tokens_total",
            "Token budgets of the batches run; tokens and padding over this is how full batches are.",
            registry=registry,
        )
        self._halvings = Counter(
            "ondol_batch_halvings_total",
            "Times that a batch ran out of device memory and was halved.",
            registry=registry,
        )
        self._forward_s = BatchHistogram(
            "ondol_batch_seconds", "Seconds of a batch on the device.", (), bounds=BATCH_BOUNDS_S, registry=registry
        )

    def ran(self, release: str, classes: Mapping[str, RowsOfClass], header: Mapping[str, object]) -> None:
        """A batch of rows of these classes came back with this `ran` header."""
        self._batches.labels(release).inc()
        for name, rows in classes.items():
            self._rows.labels(name).inc(rows.num_rows)
            self._tokens.labels(name).inc(rows.num_tokens)
            self._shared.labels(name).inc(rows.num_shared)
            self._wait_s.observe_counted(rows.waited_s, name)
        self._padding.inc(number_in(header, "num_padding"))
        self._budget.inc(number_in(header, "max_batch_tokens"))
        self._halvings.inc(number_in(header, "num_halvings"))
        self._forward_s.observe((number_in(header, "forward_s"),))


def number_in(header: Mapping[str, object], name: str) -> float:
    """A positive number of a device reply's header; 0 where it is none."""
    value = header.get(name)
    return value if isinstance(value, int | float) and value > 0 else 0
