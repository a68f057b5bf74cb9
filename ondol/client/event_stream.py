"""Reading a job's events as server-sent events, so that a lost connection neither loses nor repeats one.

`EventStream` decides and holds the place; the two clients only connect, hand it lines, and wait when it says so.
"""

from __future__ import annotations

from collections.abc import Mapping

from ondol.client.errors import ConnectionFailed, OndolAPIError, error_from_answer
from ondol.client.flow import Request, parse_json
from ondol.client.records import JobEvent, parse_event
from ondol.client.retry import RetryPolicy, retry_after_s

_NO_MORE = 204


class EventStream:
    """The place in one job's events: which request resumes there, and when nothing more will come.

    A connection is: `request()`, then `answered` with its status, `feed` for every line, then `closed`; or `failed`
    where the connection broke. Unless `is_over`, the next connection is due after `pause_s`.
    """

    def __init__(self, job_id: str, policy: RetryPolicy, *, after_seq: int = 0) -> None:
        self.job_id = job_id
        self.is_over = False
        self.pause_s = 0.0
        self._policy = policy.patient()
        self._last_seq = after_seq
        self._lines: list[str] = []
        self._tries = 0
        self._has_news = False

    def request(self) -> Request:
        """The request that goes on after the last event seen."""
        headers = {"accept": "text/event-stream"}
        if self._last_seq:
            headers["last-event-id"] = str(self._last_seq)
        return Request("GET", f"/v1/jobs/{self.job_id}/events", headers=headers)

    def answered(self, status: int) -> None:
        """The server answered without an error; 204 says that the job has ended and all its events were seen."""
        self.is_over = status == _NO_MORE
        self._policy.answered(status)

    def feed(self, line: str) -> JobEvent | None:
        """The event that this line completes, if it is a new one. Any line shows that the server is there."""
        self._tries = 0
        if line.startswith("data:"):
            self._lines.append(line[5:].removeprefix(" "))
        if line or not self._lines:
            return None
        event = parse_event(parse_json("\n".join(self._lines).encode()))
        self._lines = []
        if event.seq <= self._last_seq:
            return None
        self._last_seq = event.seq
        self._has_news = True
        return event

    def closed(self) -> None:
        """The server ended the stream; the next connection learns (by 204) whether that was all."""
        self._lines = []
        self.pause_s = 0.0 if self._has_news else self._policy.base_s
        self._has_news = False

    def refused(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        """The server answered with an error; OndolAPIError when it is final."""
        self._tries += 1
        delay_s = self._policy.delay_after_answer(self._tries, status, headers)
        if delay_s is None:
            raise self._refusal(status, headers, content)
        self.pause_s = delay_s

    def failed(self, error: ConnectionFailed) -> None:
        """The connection was lost; raises `error` when it was one too many in a row."""
        self._lines = []
        self._tries += 1
        delay_s = self._policy.delay_after_failure(self._tries)
        if delay_s is None:
            raise error
        self.pause_s = delay_s

    def _refusal(self, status: int, headers: Mapping[str, str], content: bytes) -> OndolAPIError:
        request_id = headers.get("x-request-id")
        return error_from_answer(status, content, request_id=request_id, retry_after_s=retry_after_s(headers))
