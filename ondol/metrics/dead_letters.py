"""What is told of messages that nobody understands."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class DeadLetterMetrics:
    """Messages that a node has put aside."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._letters = Counter(
            "ondol_messages_put_aside_total",
            "Messages that this process could not understand, by what is wrong with them (docs/celery.md).",
            ("cause",),
            registry=registry,
        )

    def put_aside(self, cause: str) -> None:
        """A message is a dead letter; `cause` is a `Cause`."""
        self._letters.labels(cause).inc()
