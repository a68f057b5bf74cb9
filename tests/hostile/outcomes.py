"""What came of a call that may be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


def outcome(work: Callable[[], T], refusal: type[E]) -> T | E:
    """What `work` returns, or the refusal that it raises; any other exception goes on."""
    try:
        return work()
    except refusal as exc:
        return exc
