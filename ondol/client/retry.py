"""When the client tries again, and after how long: back-off with jitter, which the server's headers overrule."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime

_RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """At most `max_retries` more tries after the first; waits double from `base_s` up to `max_backoff_s`.

    A server that asks for more patience than `max_server_wait_s` is not waited for: its refusal is raised.
    """

    max_retries: int = 4
    base_s: float = 0.25
    max_backoff_s: float = 8.0
    max_server_wait_s: float = 60.0

    def patient(self) -> RetryPolicy:
        """Twice the tries, for waits on durable jobs: these outlive a restart of the server, so the wait should too."""
        return replace(self, max_retries=2 * self.max_retries)

    def delay_after_failure(self, tries: int) -> float | None:
        """Seconds until the next try after `tries` that got no answer; None: give up."""
        return None if tries > self.max_retries else self._backoff(tries)

    def delay_after_answer(self, tries: int, status: int, headers: Mapping[str, str]) -> float | None:
        """Seconds until the next try after an answer that is an error; None: this answer is final."""
        if tries > self.max_retries or not _should_retry(status, headers):
            return None
        asked_s = retry_after_s(headers)
        if asked_s is None:
            return self._backoff(tries)
        return asked_s if asked_s <= self.max_server_wait_s else None

    def _backoff(self, tries: int) -> float:
        full = min(self.max_backoff_s, self.base_s * 2.0 ** (tries - 1))
        return full * random.uniform(0.5, 1.0)  # clients that failed together must not come back together


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What `retry-after-ms` or `Retry-After` (seconds or a date) asks for, in seconds; None if neither is usable."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None or text is None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _should_retry(status: int, headers: Mapping[str, str]) -> bool:
    told = headers.get("x-should-retry")
    if told in ("true", "false"):
        return told == "true"
    return status in _RETRIED_STATUSES


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and 0 <= value < float("inf") else None
