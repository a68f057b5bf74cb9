"""Waiting for facts: the one place in the tests that sleeps, a moment at a time and never past its limit."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SHORTEST_POLL_S = 0.005
LONGEST_POLL_S = 0.05
_POLL_GROWTH = 1.5
_ANSWER_LIMIT_S = 5


def wait_until(predicate: Callable[[], T], *, within_s: float, what: str) -> T:
    """The first true value of `predicate`; AssertionError naming `what` if none came within the limit."""
    deadline = time.monotonic() + within_s
    poll_s = SHORTEST_POLL_S
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {within_s:g} s in vain for {what}; last seen: {value!r}")
        time.sleep(poll_s)
        # What takes seconds is asked less often: the asking would slow down the process that is waited for.
        poll_s = min(poll_s * _POLL_GROWTH, LONGEST_POLL_S)


def answers_well(port: int, path: str) -> bool:
    """Whether `GET path` on this loopback port is answered with 200; False when nobody answers."""
    # Not httpx: a client of it reads all certificates, 40 ms of CPU a poll.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_LIMIT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
