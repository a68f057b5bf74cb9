"""Flows: what the client does, written once for `Ondol` and `AsyncOndol`.

A flow is a generator that yields what it needs done (`Send` a request, `Pause`) and is handed the answer. It does no
I/O itself: the two clients perform the effects, one blocking, one awaiting. Failures to reach the server are thrown
into the flow.
"""

from __future__ import annotations

import json
import uuid
from asyncio import CancelledError
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ondol.client.errors import AnswerTimedOut, BadAnswer, ConnectionFailed, NoSuchThing, error_from_answer
from ondol.client.retry import RetryPolicy, retry_after_s

T = TypeVar("T")
Json = dict[str, Any]
INTERRUPTIONS = (KeyboardInterrupt, CancelledError)
"""What ends a flow from outside; thrown into it, so that it can take back what it began."""


class Upload(Protocol):
    """A body that is read while it is sent; iterated once for each time it is sent. Reading blocks."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Content type and length."""
        ...

    def pieces(self) -> Iterator[bytes]:
        """The body from its beginning."""
        ...


class Sink(Protocol):
    """Where the body of an answer goes. Both methods may block and may raise OndolError."""

    def begin(self) -> None:
        """An answer without an error has come; what was written before belongs to one that broke off."""
        ...

    def write(self, data: bytes, /) -> object:
        """Take the next piece."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request relative to the server's address; `body` is sent as JSON.

    `patience_s` is added to the client's read timeout, for answers that the server holds back on purpose. An `upload`
    is sent in place of `body`, in pieces. The body of an answer without an error goes to the `sink`, if there is one,
    and is empty in the `Answer`.
    """

    method: str
    path: str
    params: Mapping[str, str | int | float] = field(default_factory=dict)
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    patience_s: float = 0.0
    upload: Upload | None = None
    sink: Sink | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class Send:
    """Effect: send this request and hand me the answer."""

    request: Request


@dataclass(frozen=True, slots=True)
class Pause:
    """Effect: wait this long before going on."""

    seconds: float


Effect = Send | Pause
Flow = Generator[Effect, Answer | None, T]


def exchange(request: Request, policy: RetryPolicy) -> Flow[Answer]:
    """The answer to `request` after as many tries as the policy allows; OndolAPIError or ConnectionFailed otherwise."""
    tries = 0
    was_answer_lost = False
    while True:
        tries += 1
        try:
            answer = yield Send(request)
        except ConnectionFailed as error:
            was_answer_lost = was_answer_lost or error.was_sent
            delay_s = policy.delay_after_failure(tries, is_restart=not isinstance(error, AnswerTimedOut))
            if delay_s is None:
                raise
        else:
            assert answer is not None
            policy.answered(answer.status)
            if answer.status < 300:
                return answer
            delay_s = policy.delay_after_answer(tries, answer.status, answer.headers)
            if delay_s is None:
                raise error_from_answer(
                    answer.status,
                    answer.content,
                    request_id=answer.headers.get("x-request-id"),
                    retry_after_s=retry_after_s(answer.headers),
                    after_lost_answer=was_answer_lost,
                )
            was_answer_lost = was_answer_lost or answer.status >= 500
        yield Pause(delay_s)


def exchange_json(request: Request, policy: RetryPolicy) -> Flow[Json]:
    """Like `exchange`, for answers that are JSON objects; BadAnswer when the body is anything else."""
    answer = yield from exchange(request, policy)
    return parse_json(answer.content)


def delete(path: str, policy: RetryPolicy, params: Mapping[str, str | int | float] | None = None) -> Flow[None]:
    """Nothing; what stood at `path` is gone. NoSuchThing if it never was there.

    A try whose answer was lost may have deleted it, so that after one its absence is success.
    """
    try:
        yield from exchange(Request("DELETE", path, params=params or {}), policy)
    except NoSuchThing as error:
        if not error.after_lost_answer:
            raise


def idempotent(key: str | None = None) -> dict[str, str]:
    """The header with which the server does a thing once, however often it is tried; a fresh key by default."""
    return {"idempotency-key": key or str(uuid.uuid4())}


def parse_json(content: bytes) -> Json:
    """The JSON object in `content`; BadAnswer when it is anything else."""
    try:
        body = json.loads(content)
    except ValueError as exc:
        raise BadAnswer(f"the server's answer is not JSON: {content[:80]!r}") from exc
    if not isinstance(body, dict):
        raise BadAnswer(f"the server's answer is not a JSON object: {content[:80]!r}")
    return body
