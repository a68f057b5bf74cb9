"""The worker's side of the call lists: take requests as fast as the batcher wants them, send replies together."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import structlog
from redis.exceptions import RedisError

from ondol.broker.calls import LIST_TTL_S, CallRequest, reply_key, request_key
from ondol.broker.connection import connect
from ondol.broker.dead_letters import Cause, DeadLetters
from ondol.broker.redis_clock import RedisClock
from ondol.contract.frames import FrameError, unpack_frame
from ondol.contract.jobs import Inputs
from ondol.contract.kinds import JobKind
from ondol.contract.states import Priority

log = structlog.get_logger(__name__)
_BLOCK_S = 1
_ANSWER_LIMIT_S = 5.0
"""Of a BLPOP that may block for a second: so soon calls are heard again after a link has become half open."""


class CallTaker:
    """Pops requests of one worker, interactive ones first. One thread uses it. What is no request goes to `letters`."""

    def __init__(self, redis_url: str, worker: str, *, letters: DeadLetters | None = None) -> None:
        self._client = connect(redis_url, answer_limit_s=_ANSWER_LIMIT_S)
        self._keys = [request_key(worker, priority) for priority in Priority]
        self._letters = letters
        self._clock = RedisClock()

    def take(self, at_most: int) -> list[tuple[str, CallRequest]]:
        """Up to so many (api id, request); blocks for a second at most, then answers none."""
        key, frames = self._keys[0], list[bytes]()
        try:
            if self._clock.is_stale:
                self._ask_time()
            popped: Any = self._client.blpop(self._keys, timeout=_BLOCK_S)
            if popped is None:
                return []
            key, first = popped[0].decode(), popped[1]
            frames.append(first)
            if at_most > 1:
                more: Any = self._client.lpop(key, at_most - 1)
                frames += more or []
        except (RedisError, OSError) as exc:  # what was taken before is still answered
            log.warning("calls.not_taken", reason=str(exc)[:200])
            threading.Event().wait(0.5)
        return self._read(key, frames)

    def take_waiting(self) -> list[tuple[str, CallRequest]]:
        """Everything that waits now, without blocking; for a worker that stops."""
        requests: list[tuple[str, CallRequest]] = []
        try:
            for key in self._keys:
                popped: Any = self._client.lpop(key, 100_000)
                requests += self._read(key, popped or [])
        except (RedisError, OSError) as exc:
            log.warning("calls.not_drained", reason=str(exc)[:200])
        return requests

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def _ask_time(self) -> None:
        asked_at = time.monotonic()
        self._clock.learn(self._client.time(), asked_at=asked_at)

    def _read(self, key: str, frames: Sequence[bytes]) -> list[tuple[str, CallRequest]]:
        """The requests, their deadlines by this process's clock."""
        found: list[tuple[str, CallRequest]] = []
        for frame in frames:
            parsed = parse_request(frame)
            if parsed is not None:
                found.append((parsed[0], self._by_own_clock(parsed[1])))
            elif self._letters is not None:
                self._letters.put_aside(key, frame, Cause.NO_CALL)
        return found

    def _by_own_clock(self, request: CallRequest) -> CallRequest:
        if not self._clock.is_known:  # a worker that stops before it has taken anything: they are refused, not run
            return request
        return replace(request, deadline_at=self._clock.by_own(request.deadline_at))


class ReplySender:
    """Sends replies from a thread of its own, all that wait in one round trip."""

    def __init__(self, redis_url: str) -> None:
        self._client = connect(redis_url)
        self._queue: queue.SimpleQueue[tuple[str, bytes] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="call-replies", daemon=True)
        self._thread.start()

    def send(self, api_id: str, frame: bytes) -> None:
        """Hand a reply over; never blocks. A reply that Redis refuses is lost: the caller's deadline answers it."""
        self._queue.put((api_id, frame))

    def close(self) -> None:
        """Send what waits, then stop."""
        self._queue.put(None)
        self._thread.join(timeout=5)
        self._client.close()

    def _loop(self) -> None:
        while True:
            item = self._queue.get()
            lists: dict[str, list[bytes]] = defaultdict(list)
            while item is not None:
                lists[item[0]].append(item[1])
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            self._push(lists)
            if item is None:
                return

    def _push(self, lists: dict[str, list[bytes]]) -> None:
        try:
            pipeline = self._client.pipeline(transaction=False)
            for api_id, frames in lists.items():
                pipeline.rpush(reply_key(api_id), *frames)
                pipeline.expire(reply_key(api_id), LIST_TTL_S)
            pipeline.execute()
        except (RedisError, OSError) as exc:
            log.warning("calls.replies_not_sent", num_replies=sum(map(len, lists.values())), reason=str(exc)[:200])


def parse_request(frame: bytes) -> tuple[str, CallRequest] | None:
    """(api id, request) of a frame from a call list; None, and a line in the log, for anything else.

    Its deadline is still by Redis's clock.
    """
    try:
        header, _ = unpack_frame(frame)
        request = CallRequest(
            version_id=_text(header["version_id"]),
            model_ref=_text(header["model_ref"]),
            kind=JobKind(header["kind"]),
            options=dict(header["options"]),
            inputs=_inputs(header["inputs"]),
            deadline_at=float(header["deadline_at"]),
            priority=Priority(header["priority"]),
            id=_text(header["id"]),
        )
        return _text(header["api"]), request
    except (FrameError, KeyError, ValueError, TypeError, OverflowError):
        log.warning("calls.request_unreadable", num_bytes=len(frame))
        return None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _inputs(value: Any) -> Inputs:
    if not isinstance(value, list) or not all(isinstance(item, str | list | dict) for item in value):
        raise TypeError("no inputs")
    return value
