"""What the system grants connections: enough open files for them, and an end for those whose client takes nothing."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterable
from typing import Protocol

import structlog

OTHER_FILES = 1_024
"""Open files beside event streams: connections of short requests, SQL, Redis, files that are sent."""

log = structlog.get_logger(__name__)


class Listening(Protocol):
    """A socket as the event loop shows it."""

    def setsockopt(self, level: int, option: int, value: int, /) -> object:
        """As of `socket.socket`."""


def allow_open_files(num_streams: int) -> int:
    """Raise this process's limit of open files to what so many event streams need; the limit as it then is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_streams + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    granted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
    if granted < wanted:
        log.warning("api.few_open_files", granted=granted, wanted=wanted, remedy="raise `ulimit -Hn`")
    return granted


def leave_the_gone(listening: Iterable[Listening], gone_s: float) -> None:
    """Connections that these accept from now on end when what was sent has lain untaken for so long.

    That is a client that vanished without a word, or that reads nothing; the system alone would wait a quarter of an
    hour for the first, and for ever for the second. Linux; elsewhere the system's own times hold.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is None:
        return
    for each in listening:
        each.setsockopt(socket.IPPROTO_TCP, option, int(1000 * gone_s))
