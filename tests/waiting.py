"""Waiting for facts: the one place in the tests that sleeps, a moment at a time and never past its limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.02


def wait_until(predicate: Callable[[], T], *, within_s: float, what: str) -> T:
    """The first true value of `predicate`; AssertionError naming `what` if none came within the limit."""
    deadline = time.monotonic() + within_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {within_s:g} s in vain for {what}; last seen: {value!r}")
        time.sleep(POLL_S)
