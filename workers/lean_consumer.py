"""Celery's consumer without what Ondol's messages have no use for: acknowledgements in Redis, a round trip an event.

A message is a hint: what it rang is in SQL, and is rung again when nobody claims it. So Redis need not remember it.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from celery.worker.consumer import Consumer

from ondol.broker.dead_letters import DeadLetters
from ondol.broker.unreadable import PutsAside
from workers.broker_sockets import cut
from workers.hearing import Hearing

_WISH_EVERY_S = 0.25
LONGEST_RECONNECT_PAUSE_S = 3
FLUSH_EVERY_S = 0.5
"""The longest that an event of a task waits for others to travel with it to Flower."""


class LeanConsumer(PutsAside, Consumer):  # type: ignore[misc]  # celery is untyped
    """Takes from queues with `no_ack`, sends the events of tasks together, and connects anew when `hearing` says so."""

    hearing: Hearing
    """Set by the subclass that `hearing_with` makes."""
    _next_flush_at = 0.0

    def ensure_connected(self, conn: Any) -> Any:
        """Try again every few seconds: Celery's own waits grow to 30 s, longer than a node is deaf before it ends."""
        conn.ensure_connection = partial(
            conn.ensure_connection, interval_start=1, interval_step=1, interval_max=LONGEST_RECONNECT_PAUSE_S
        )
        return super().ensure_connected(conn)

    def on_ready(self) -> None:
        """The connection stands, and its queues are consumed: from now on nothing is acknowledged."""
        super().on_ready()
        self.hearing.take_wish()  # one that was made while it connected is fulfilled
        self.hearing.cut = lambda: cut(self)
        self.task_consumer.channel.basic_ack = _acknowledge_nothing

    def register_with_event_loop(self, hub: Any) -> None:
        """Send what waits from time to time; the timer ends with the connection."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(FLUSH_EVERY_S, self._flush_events)
        hub.call_repeatedly(_WISH_EVERY_S, self._look_for_a_wish)

    def on_send_event_buffered(self) -> None:
        """An event has come: the first after a pause goes at once, others with the next flush. Any thread."""
        now = time.monotonic()
        if now >= self._next_flush_at:
            self._next_flush_at = now + FLUSH_EVERY_S
            super().on_send_event_buffered()

    def _look_for_a_wish(self) -> None:
        """A timer of the loop: a lost connection raised here is met as any other is, by a new one."""
        if self.hearing.take_wish():
            cut(self)
            raise ConnectionResetError("nothing was heard over this connection while work lay in Redis")


def hearing_with(hearing: Hearing, letters: DeadLetters) -> type[LeanConsumer]:
    """The consumer's class for the node that these two are of; Celery makes the instance itself."""
    return type("HearingConsumer", (LeanConsumer,), {"hearing": hearing, "letters": letters})


def _acknowledge_nothing(delivery_tag: str, multiple: bool = False) -> None:
    """Redis keeps nothing of a message that was taken from a queue with `no_ack`."""
