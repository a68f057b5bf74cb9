"""Calls: synchronous requests beside Celery, one request list a device and class, one reply list an api process.

Concurrent calls of one api process travel together: while one push is in flight, arrivals gather; no timer when idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import structlog
from redis.exceptions import RedisError

from ondol.broker.connection import connect_async
from ondol.broker.ending import end_tasks
from ondol.broker.redis_clock import RedisClock
from ondol.broker.wake import STRIKE_CHANNEL
from ondol.contract.errors import BrokerUnavailable, DeadlineExceeded, OndolError
from ondol.contract.frames import FrameError, Header, pack_frame, unpack_frame
from ondol.contract.ids import new_id
from ondol.contract.jobs import Inputs
from ondol.contract.kinds import JobKind
from ondol.contract.states import Priority

LIST_TTL_S = 120
_MAX_REPLIES = 256
_HEAVY_VALUES = 32_768
"""Characters or token ids from which a request is packed on a thread."""
_FIRST_TIME_LIMIT_S = 2.0
"""How long a start waits for Redis to say what time it has; the first call asks again."""

log = structlog.get_logger(__name__)


def request_key(worker: str, priority: Priority) -> str:
    """The request list of a device and class."""
    return f"ondol:calls:{worker}:{priority}"


def reply_key(api_id: str) -> str:
    """The reply list of an api process."""
    return f"ondol:replies:{api_id}"


@dataclass(frozen=True, slots=True)
class CallRequest:
    """One synchronous request.

    `deadline_at`: seconds since the epoch by this process's clock, after which nobody wants the answer. It travels by
    Redis's clock.
    """

    version_id: str
    model_ref: str
    kind: JobKind
    options: dict[str, Any]
    inputs: Inputs
    deadline_at: float
    priority: Priority = Priority.INTERACTIVE
    id: str = field(default_factory=lambda: new_id("call"))

    def to_header(self, api_id: str) -> Header:
        """The request as a frame's header; its deadline as it stands, so by Redis's clock first."""
        return {
            "v": 1,
            "id": self.id,
            "api": api_id,
            "version_id": self.version_id,
            "model_ref": self.model_ref,
            "kind": self.kind.value,
            "options": self.options,
            "inputs": self.inputs,
            "deadline_at": self.deadline_at,
            "priority": self.priority.value,
        }


@dataclass(frozen=True, slots=True)
class CallReply:
    """The answer to a call.

    `vectors`: an embedding's float32 [N, H], or a list of [T_i, H] for `pooling: none`; a text classification's
    scores [N, C]; of a token classification none (shape [N, 0]), whose entities are `outputs`, one list an input.
    `about` says how to read them, as the summary of a stored result does (`labels` and the like).
    `errors` holds the items that failed, by index; their vectors are zeros. `timings` are seconds by stage.
    """

    vectors: np.ndarray[Any, np.dtype[np.float32]] | list[np.ndarray[Any, np.dtype[np.float32]]]
    tokens: list[int]
    truncated: list[bool]
    errors: dict[int, dict[str, Any]]
    model: str
    dtype: str
    engine: str
    timings: dict[str, float]
    about: dict[str, Any] = field(default_factory=dict)
    outputs: list[Any] | None = None


class CallSender:
    """The api's side of the call lists. Everything runs in one event loop."""

    def __init__(self, redis_url: str, api_id: str) -> None:
        self._pushes = connect_async(redis_url)
        self._replies = connect_async(redis_url)
        self._api_id = api_id
        self._clock = RedisClock()
        self._pending: list[tuple[str, bytes, str]] = []
        self._waiting: dict[str, tuple[asyncio.Future[CallReply], str]] = {}
        self._in_flight: dict[str, int] = {}
        self._push_task: asyncio.Task[None] | None = None
        self._strikes: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to read replies. A Redis that is away delays it by seconds at most."""
        try:
            await asyncio.wait_for(self._ask_time(), _FIRST_TIME_LIMIT_S)
        except (RedisError, OSError, TimeoutError) as exc:
            log.warning("calls.time_not_asked", reason=str(exc)[:200])
        self._reader = asyncio.create_task(self._read_replies(), name="call-replies")

    async def stop(self) -> None:
        """Stop; calls that still wait fail as BrokerUnavailable."""
        await end_tasks((self._reader, self._push_task, *self._strikes))
        for future, _ in list(self._waiting.values()):
            if not future.done():
                future.set_exception(BrokerUnavailable("the api process is stopping"))
        with contextlib.suppress(RedisError, OSError):
            await self._pushes.delete(reply_key(self._api_id))
        await self._pushes.aclose()
        await self._replies.aclose()

    def in_flight(self, worker: str) -> int:
        """Calls sent to the worker and not answered."""
        return self._in_flight.get(worker, 0)

    async def call(self, worker: str, request: CallRequest) -> CallReply:
        """The worker's answer. Raises DeadlineExceeded, BrokerUnavailable, or what the worker answered.

        Cancelling the awaiting task strikes the call out of the worker's batches.
        """
        if not self._clock.is_known:
            await self._ask_time_or_refuse()
        sent = replace(request, deadline_at=self._clock.by_redis(request.deadline_at))
        frame = await self._pack(sent)  # before anything is registered that would have to be undone
        future: asyncio.Future[CallReply] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = (future, worker)
        self._in_flight[worker] = self._in_flight.get(worker, 0) + 1
        self._pending.append((request_key(worker, request.priority), frame, request.id))
        if self._push_task is None or self._push_task.done():
            self._push_task = asyncio.create_task(self._push(), name="call-push")
        try:
            return await asyncio.wait_for(future, max(0.0, request.deadline_at - time.time()))
        except TimeoutError as exc:
            raise DeadlineExceeded("no answer came before the call's deadline") from exc
        except asyncio.CancelledError:
            self._strike_soon(request.id)
            raise
        finally:
            self._waiting.pop(request.id, None)
            self._in_flight[worker] -= 1

    async def _pack(self, request: CallRequest) -> bytes:
        if _num_values(request.inputs) <= _HEAVY_VALUES:
            return pack_frame(request.to_header(self._api_id))
        return await asyncio.to_thread(pack_frame, request.to_header(self._api_id), long_list="inputs")

    async def _ask_time(self) -> None:
        asked_at = time.monotonic()
        self._clock.learn(await self._replies.time(), asked_at=asked_at)

    async def _ask_time_or_refuse(self) -> None:
        try:
            await self._ask_time()
        except (RedisError, OSError) as exc:
            raise BrokerUnavailable("Redis does not answer; try again") from exc

    async def _push(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            lists: dict[str, list[bytes]] = {}
            for key, frame, _ in batch:
                lists.setdefault(key, []).append(frame)
            try:
                pipeline = self._pushes.pipeline(transaction=False)
                for key, frames in lists.items():
                    pipeline.rpush(key, *frames)
                    pipeline.expire(key, LIST_TTL_S)
                await pipeline.execute()
            except Exception as exc:  # noqa: BLE001 - the task's edge: everybody whose call was not sent is told so
                self._fail([call_id for _, _, call_id in batch], exc)

    def _fail(self, ids: list[str], exc: Exception) -> None:
        log.warning("calls.not_sent", num_calls=len(ids), reason=str(exc)[:200])
        for call_id in ids:
            waiting = self._waiting.get(call_id)
            if waiting is not None and not waiting[0].done():
                waiting[0].set_exception(BrokerUnavailable("Redis does not answer; try again"))

    def _strike_soon(self, call_id: str) -> None:
        """Strike out beside the caller, who must not wait for a Redis that does not answer."""
        task = asyncio.create_task(self._strike(call_id), name="call-strike")
        self._strikes.add(task)
        task.add_done_callback(self._strikes.discard)

    async def _strike(self, call_id: str) -> None:
        with contextlib.suppress(RedisError, OSError):
            await self._pushes.publish(STRIKE_CHANNEL, f'["{call_id}"]')

    async def _read_replies(self) -> None:
        key = reply_key(self._api_id)
        while True:
            try:
                if self._clock.is_stale:
                    await self._ask_time()
                popped = await self._replies.blpop([key], timeout=5)
                if popped is None:
                    continue
                frames = [popped[1], *(await self._replies.lpop(key, _MAX_REPLIES) or [])]
            except (RedisError, OSError) as exc:
                log.warning("calls.replies_not_read", reason=str(exc)[:200])
                await asyncio.sleep(0.2)
                continue
            for frame in frames:
                self._settle(frame)

    def _settle(self, frame: bytes) -> None:
        try:
            header, body = unpack_frame(frame)
            waiting = self._waiting.get(header["id"])
            if waiting is None or waiting[0].done():
                return
            if header["ok"]:
                waiting[0].set_result(_parse_reply(header, body))
            else:
                waiting[0].set_exception(_parse_error(header["error"]))
        except (FrameError, LookupError, ValueError, TypeError, AttributeError):
            log.exception("calls.reply_unreadable")  # its caller's deadline answers; the next reply is read


def _num_values(inputs: Inputs) -> int:
    """Characters or token ids of all inputs."""
    return sum(sum(map(len, item.values())) if isinstance(item, dict) else len(item) for item in inputs)


def reply_header(call_id: str, reply: CallReply) -> tuple[Header, bytes]:
    """A reply as a frame's header and body."""
    header: Header = {
        "v": 1,
        "id": call_id,
        "ok": True,
        "tokens": reply.tokens,
        "truncated": [i for i, cut in enumerate(reply.truncated) if cut],
        "errors": {str(i): error for i, error in reply.errors.items()},
        "model": reply.model,
        "dtype": reply.dtype,
        "engine": reply.engine,
        "timings": reply.timings,
        "about": reply.about,
        "outputs": reply.outputs,
    }
    if isinstance(reply.vectors, list):
        header["lengths"] = [len(vectors) for vectors in reply.vectors]
        header["dimensions"] = reply.vectors[0].shape[1] if reply.vectors else 0
        return header, b"".join(np.ascontiguousarray(vectors, dtype="<f4").tobytes() for vectors in reply.vectors)
    header["shape"] = list(reply.vectors.shape)
    return header, np.ascontiguousarray(reply.vectors, dtype="<f4").tobytes()


def error_header(call_id: str, error: OndolError) -> Header:
    """A refusal as a frame's header."""
    return {"v": 1, "id": call_id, "ok": False, "error": error.as_dict() | {"class": type(error).__name__}}


def _parse_reply(header: Header, body: memoryview) -> CallReply:
    flat = np.frombuffer(body, dtype="<f4")
    vectors: Any
    if "lengths" in header:
        rows = flat.reshape(-1, header["dimensions"])
        vectors = np.split(rows, np.cumsum(header["lengths"])[:-1])
    else:
        vectors = flat.reshape(header["shape"])
    truncated = set(header["truncated"])
    return CallReply(
        vectors=vectors,
        tokens=header["tokens"],
        truncated=[i in truncated for i in range(len(header["tokens"]))],
        errors={int(i): error for i, error in header["errors"].items()},
        model=header["model"],
        dtype=header["dtype"],
        engine=header["engine"],
        timings=header["timings"],
        about=header.get("about") or {},
        outputs=header.get("outputs"),
    )


def _parse_error(error: dict[str, Any]) -> OndolError:
    kinds = {cls.__name__: cls for cls in _error_classes(OndolError)}
    cls = kinds.get(error.get("class", ""), OndolError)
    try:
        return cls(error["message"], param=error["param"], code=error["code"])
    except TypeError:  # a class whose constructor wants more: keep code and message
        return OndolError(error["message"], param=error["param"], code=error["code"])


def _error_classes(root: type[OndolError]) -> list[type[OndolError]]:
    found = [root]
    for cls in root.__subclasses__():
        found += _error_classes(cls)
    return found
