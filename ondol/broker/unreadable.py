"""What lies in a queue and is no message: thrown away, where Celery's own worker would end."""

from __future__ import annotations

from typing import Any

import structlog

log = structlog.get_logger(__name__)

_READ = "BRPOP"
"""Kombu's name of the handler that takes one message from the queues of a channel and delivers it."""


def take_only_messages(channel: Any) -> None:
    """Let a consuming channel of Kombu's Redis transport go on behind bytes that no Celery wrote.

    Such bytes (no JSON, no envelope) are logged by what is wrong with them, never by what they hold.
    """
    read = channel.handlers[_READ]

    def read_or_drop() -> Any:
        try:
            return read()
        except (ValueError, TypeError, LookupError, AttributeError) as exc:
            log.warning("message.unreadable", error=type(exc).__name__)
            return True  # it was taken from the queue

    channel.handlers[_READ] = read_or_drop
