"""Cutting the connections of Celery's consumer, so that nobody waits for an answer over a link that is half open.

Neither celery nor kombu can do that from outside: their loop itself may be the one that waits. This reads attributes
of theirs, and of redis-py's pools, that are not promised; what is not there is not cut.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

_POOLS = ("_pool", "_async_pool")
_OF_A_POOL = ("_available_connections", "_in_use_connections")


def cut(consumer: Any) -> int:
    """Shut down every socket of a `celery.worker.consumer.Consumer`; how many. Any thread, no wait, never raises."""
    num_cut = 0
    dispatcher = getattr(consumer, "event_dispatcher", None)
    for connection in (getattr(consumer, "connection", None), getattr(dispatcher, "connection", None)):
        for sock in list(_sockets(connection)):
            with contextlib.suppress(OSError):  # closed already
                sock.shutdown(socket.SHUT_RDWR)
                num_cut += 1
    return num_cut


def _sockets(connection: Any) -> Iterator[socket.socket]:
    for channel in list(getattr(getattr(connection, "_transport", None), "channels", None) or ()):
        for pool in (getattr(channel, name, None) for name in _POOLS):
            for kept in _OF_A_POOL:
                for each in list(getattr(pool, kept, ())):
                    sock = getattr(each, "_sock", None)
                    if sock is not None:
                        yield sock
