"""Dead letters: what lay in a queue and is no message that anybody understands, kept to be looked at (decision 20).

One stream in Redis, where the bytes were before. It holds the newest letters only, and those only for a time.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import structlog
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from ondol.broker.connection import connect
from ondol.contract.errors import BrokerUnavailable

STREAM = "ondol:dead-letters"
MAX_LETTERS = 256
MAX_WHOLE_BYTES = 256 * 1024
"""The largest letter that is kept whole, and so may be put back."""
HEAD_BYTES = 1024
"""What is kept of a larger one."""
EXPIRES_S = 90 * 86_400
"""The stream itself goes so long after its last letter, where nobody sweeps."""
_MAX_CHARS = 128
_ANSWER_LIMIT_S = 2.0
_BELL_EVERY_S = 60.0

log = structlog.get_logger(__name__)


class Cause(StrEnum):
    """Why a letter is dead."""

    UNREADABLE = "unreadable"
    """Bytes in which there is no message: no JSON, or no envelope."""
    NO_TASK = "no_task"
    """A message that is no task of Celery's."""
    UNKNOWN_TASK = "unknown_task"
    """A task of a name that this process does not run."""
    INVALID_TASK = "invalid_task"
    """A task whose shape is wrong, or that is not written in JSON."""
    UNDECODABLE = "undecodable"
    """A message whose body does not decode."""
    UNKNOWN_VERSION = "unknown_version"
    """A bell of Ondol's own, of a version or a shape that is not known. Its jobs are in SQL and are rung again."""
    NO_CALL = "no_call"
    """A frame in a list of calls that is none. Whoever sent it has had no answer."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One letter. `body`: all of it where `is_whole`, else its beginning; it may hold texts of users."""

    id: str
    put_aside_at: float
    """Seconds since the epoch by Redis's clock."""
    queue: str
    cause: str
    error: str
    """The name of the exception that it was met with, or nothing."""
    by: str
    """The node that took it."""
    size_bytes: int
    sha256: str
    is_whole: bool
    body: bytes

    @property
    def may_be_requeued(self) -> bool:
        """Whether it can be put back: bells and calls are of no use to anybody."""
        return self.is_whole and self.cause not in (Cause.UNKNOWN_VERSION, Cause.NO_CALL)


class DeadLetters:
    """The stream of one Redis. Thread-safe. `by`: who puts letters aside; `count` is told the cause of each."""

    def __init__(self, redis_url: str, *, by: str = "", count: Callable[[str], None] = lambda _: None) -> None:
        # Few seconds and no second try: those who put letters aside have queues to serve.
        self._client = connect(redis_url, answer_limit_s=_ANSWER_LIMIT_S, retry=Retry(NoBackoff(), 0))
        self._by = by
        self._count = count
        self._lock = threading.Lock()
        self._next_bell_at = 0.0

    def put_aside(self, queue: str, body: bytes, cause: Cause, *, error: BaseException | None = None) -> None:
        """Keep one letter; never raises. One that Redis refuses is lost, and the log says so.

        Of bells that are rung again and again one a minute is kept; all are counted.
        """
        named = "" if error is None else type(error).__name__
        log.warning("message.put_aside", queue=queue, cause=cause, error=named, num_bytes=len(body))
        self._count(cause)
        if cause is Cause.UNKNOWN_VERSION and not self._is_bell_due():
            return
        fields: dict[Any, Any] = {
            "queue": queue,
            "cause": cause.value,
            "error": named,
            "by": self._by,
            "size": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "body": body if len(body) <= MAX_WHOLE_BYTES else body[:HEAD_BYTES],
        }
        try:
            with self._client.pipeline(transaction=True) as pipeline:
                pipeline.xadd(STREAM, fields, maxlen=MAX_LETTERS, approximate=False)
                pipeline.expire(STREAM, EXPIRES_S)
                pipeline.execute()
        except (RedisError, OSError) as exc:
            log.warning("message.lost", queue=queue, cause=cause, reason=str(exc)[:200])

    def newest(self, num: int = MAX_LETTERS) -> list[DeadLetter]:
        """Letters, the newest first. BrokerUnavailable, as all that follow."""
        return [_letter(*row) for row in self._ask(lambda redis: redis.xrevrange(STREAM, count=num))]

    def find(self, letter_id: str) -> DeadLetter | None:
        """The letter of that id; None if there is none (any more)."""
        rows = self._ask(lambda redis: redis.xrange(STREAM, letter_id, letter_id)) if _is_id(letter_id) else []
        return _letter(*rows[0]) if rows else None

    def num_letters(self) -> int:
        """How many there are."""
        return int(self._ask(lambda redis: redis.xlen(STREAM)))

    def requeue(self, letter: DeadLetter) -> bool:
        """Put a whole letter back into its queue, behind all others; False if it is gone from here meanwhile.

        Two who do so at once may put it there twice: the intake records one job a task id.
        """
        assert letter.may_be_requeued
        if self.find(letter.id) is None:
            return False

        def put_back(redis: Any) -> Any:
            with redis.pipeline(transaction=True) as pipeline:
                pipeline.lpush(letter.queue, letter.body)
                pipeline.xdel(STREAM, letter.id)
                return pipeline.execute()

        self._ask(put_back)
        return True

    def drop(self, ids: Sequence[str]) -> int:
        """Delete letters; how many of these there were."""
        known = [each for each in ids if _is_id(each)]
        return int(self._ask(lambda redis: redis.xdel(STREAM, *known))) if known else 0

    def sweep(self, older_than_s: float | None) -> int:
        """Delete what was put aside longer ago, if a time is given; how many are left."""
        if older_than_s is not None:
            seconds, microseconds = self._ask(lambda redis: redis.time())
            oldest_ms = int((seconds + microseconds / 1e6 - older_than_s) * 1000)
            self._ask(lambda redis: redis.xtrim(STREAM, minid=max(0, oldest_ms), approximate=False))
        return self.num_letters()

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        try:
            return question(self._client)
        except (RedisError, OSError) as exc:
            raise BrokerUnavailable(f"Redis does not answer: {str(exc)[:200]}") from exc

    def _is_bell_due(self) -> bool:
        with self._lock:
            now = time.monotonic()
            is_due = now >= self._next_bell_at
            self._next_bell_at = now + _BELL_EVERY_S if is_due else self._next_bell_at
            return is_due


def _letter(letter_id: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    """A row of the stream; what is missing in one that is not ours is empty."""

    def text(name: bytes) -> str:
        return fields.get(name, b"").decode(errors="replace")[:_MAX_CHARS]

    body, size = fields.get(b"body", b""), text(b"size")
    size_bytes = int(size) if size.isdecimal() else len(fields.get(b"body", b""))
    return DeadLetter(
        id=letter_id.decode(),
        put_aside_at=int(letter_id.split(b"-")[0]) / 1000,
        queue=fields.get(b"queue", b"").decode(errors="surrogateescape"),
        cause=text(b"cause"),
        error=text(b"error"),
        by=text(b"by"),
        size_bytes=size_bytes,
        sha256=text(b"sha256"),
        is_whole=size_bytes == len(body),
        body=body,
    )


def _is_id(text: str) -> bool:
    """Whether the text has the form of a stream's id, which Redis would refuse else."""
    milliseconds, _, number = text.partition("-")
    return all(part.isascii() and part.isdecimal() and len(part) <= 20 for part in (milliseconds, number or "0"))
