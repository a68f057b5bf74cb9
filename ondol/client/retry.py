"""When the client tries again, and after how long: back-off with jitter, which the server's headers overrule."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime

_RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_RESTART_STATUSES = frozenset({502, 503})
"""What a server answers, or a proxy in front of it, while it or what it needs is started again."""


@dataclass(slots=True)
class ServerSeen:
    """What the requests of one client have found out about its server."""

    has_answered: bool = False


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """At most `max_retries` more tries after the first; waits double from `base_s` up to `max_backoff_s`.

    A server that has answered before and now does not, or not yet, is believed to restart, and gets three times the
    tries: by default half a minute at least, and a minute at most. One that never answered is given up after seconds.
    A server that asks for more patience than `max_server_wait_s` is not waited for: its refusal is raised.
    """

    max_retries: int = 4
    base_s: float = 0.25
    max_backoff_s: float = 8.0
    max_server_wait_s: float = 60.0
    is_patient: bool = False
    server: ServerSeen = field(default_factory=ServerSeen, compare=False)

    def patient(self) -> RetryPolicy:
        """Twice the tries, for waits on durable jobs: these outlive a restart of the server, so the wait should too."""
        return replace(self, is_patient=True)

    def answered(self, status: int) -> None:
        """Take note of an answer: a server that is there is waited for when it restarts."""
        if status < 500:
            self.server.has_answered = True

    def delay_after_failure(self, tries: int, *, is_restart: bool = True) -> float | None:
        """Seconds until the next try after `tries` that got no answer; None: give up. Silence is no restart."""
        return self._backoff(tries) if tries <= self._most_retries(is_restart=is_restart) else None

    def delay_after_answer(self, tries: int, status: int, headers: Mapping[str, str]) -> float | None:
        """Seconds until the next try after an answer that is an error; None: this answer is final."""
        most_retries = self._most_retries(is_restart=status in _RESTART_STATUSES)
        if tries > most_retries or not _should_retry(status, headers):
            return None
        asked_s = retry_after_s(headers)
        if asked_s is None:
            return self._backoff(tries)
        if asked_s > self.max_server_wait_s:
            return None
        return asked_s if tries <= self.max_retries else max(asked_s, self._backoff(tries))

    def _most_retries(self, *, is_restart: bool) -> int:
        if is_restart and self.server.has_answered:
            return 3 * self.max_retries
        return 2 * self.max_retries if self.is_patient else self.max_retries

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
