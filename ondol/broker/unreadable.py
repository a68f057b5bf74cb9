"""What lies in a queue and is no message that is understood: put aside, where Celery's own worker would end or forget.

Such messages are named by what is wrong with them, never by what they hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ondol.broker.dead_letters import Cause, DeadLetters

_READ = "BRPOP"
"""Kombu's name of the handler that takes one message from the queues of a channel and delivers it."""
_PRIORITY_MARK = b"\x06\x16"
"""What stands in the key of a queue of another priority than the usual, before its number."""
_NO_MESSAGE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)

PutAside = Callable[[Cause, BaseException | None], None]


class PutsAside:
    """A mixin for `celery.worker.consumer.Consumer`: what Celery refuses is kept as a dead letter first.

    `letters` is set by the class that is made for a node.
    """

    letters: DeadLetters
    _put_aside: PutAside = staticmethod(lambda _cause, _error: None)

    def on_ready(self) -> None:
        """The connection stands, and its queues are consumed."""
        super().on_ready()  # type: ignore[misc]  # Celery's
        self._put_aside = take_only_messages(self.task_consumer.channel, self.letters)  # type: ignore[attr-defined]  # Celery's

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """A message that is no task."""
        self._put_aside(Cause.NO_TASK, None)
        super().on_unknown_message(body, message)  # type: ignore[misc]  # Celery's

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A task that this node does not run."""
        self._put_aside(Cause.UNKNOWN_TASK, exc)
        super().on_unknown_task(body, message, exc)  # type: ignore[misc]  # Celery's

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A task of a wrong shape."""
        self._put_aside(Cause.INVALID_TASK, exc)
        super().on_invalid_task(body, message, exc)  # type: ignore[misc]  # Celery's

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """A message whose body does not decode."""
        self._put_aside(Cause.UNDECODABLE, exc)
        super().on_decode_error(message, exc)  # type: ignore[misc]  # Celery's


def take_only_messages(channel: Any, letters: DeadLetters) -> PutAside:
    """Let a consuming channel of Kombu's Redis transport go on behind bytes that no Celery wrote; they are put aside.

    The answer puts aside what was taken last, for as long as it is being delivered: on the thread of Celery's loop.
    """
    read, parse = channel.handlers[_READ], channel.client.parse_response
    taken: list[tuple[bytes, bytes]] = []

    def parse_and_remember(connection: Any, command_name: Any, **options: Any) -> Any:
        found = parse(connection, command_name, **options)
        if command_name == _READ and found:
            taken[:] = [found]
        return found

    def put_aside(cause: Cause, error: BaseException | None) -> None:
        for queue, body in taken:
            letters.put_aside(queue.split(_PRIORITY_MARK)[0].decode(errors="replace"), body, cause, error=error)
        taken.clear()  # one letter, however often it is refused

    def read_or_put_aside() -> Any:
        try:
            return read()
        except _NO_MESSAGE as exc:
            put_aside(Cause.UNREADABLE, exc)
            return True  # it was taken from the queue
        finally:
            taken.clear()

    channel.client.parse_response = parse_and_remember
    channel.handlers[_READ] = read_or_put_aside
    return put_aside
