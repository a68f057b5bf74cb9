"""Celery's consumer without what Ondol's messages have no use for: acknowledgements in Redis, a round trip an event.

A message is a hint: what it rang is in SQL, and is rung again when nobody claims it. So Redis need not remember it.
"""

from __future__ import annotations

import time
from typing import Any

from celery.worker.consumer import Consumer

FLUSH_EVERY_S = 0.5
"""The longest that an event of a task waits for others to travel with it to Flower."""


class LeanConsumer(Consumer):  # type: ignore[misc]  # celery is untyped
    """Takes from queues with `no_ack`, and sends the events of tasks together."""

    _next_flush_at = 0.0

    def on_ready(self) -> None:
        """The connection stands, and its queues are consumed: from now on nothing is acknowledged."""
        super().on_ready()
        self.task_consumer.channel.basic_ack = _acknowledge_nothing

    def register_with_event_loop(self, hub: Any) -> None:
        """Send what waits from time to time; the timer ends with the connection."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(FLUSH_EVERY_S, self._flush_events)

    def on_send_event_buffered(self) -> None:
        """An event has come: the first after a pause goes at once, others with the next flush. Any thread."""
        now = time.monotonic()
        if now >= self._next_flush_at:
            self._next_flush_at = now + FLUSH_EVERY_S
            super().on_send_event_buffered()


def _acknowledge_nothing(delivery_tag: str, multiple: bool = False) -> None:
    """Redis keeps nothing of a message that was taken from a queue with `no_ack`."""
