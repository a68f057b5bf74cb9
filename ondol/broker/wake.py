"""Wake-ups: hints by Redis pub/sub that a job or an alias has moved, or that work is no longer wanted.

SQL is read again after each. A lost hint costs a poll interval, never a job.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import threading
from collections.abc import Callable, Iterator, Sequence

import redis
import structlog
from redis.exceptions import RedisError

from ondol.broker.connection import connect, connect_async
from ondol.broker.ending import end_tasks
from ondol.contract.ids import parent_of

WAKE_CHANNEL = "ondol:wake"
STRIKE_CHANNEL = "ondol:strike"
ALIAS_CHANNEL = "ondol:aliases"
_NO_NOTICES = "-"
"""Stands before the ids of a hint that concerns nobody but those who wait for these very jobs."""
_MAX_GROUP = 2_000

_Hint = tuple[str, bool]
"""A channel, and whether notices may have been written."""

log = structlog.get_logger(__name__)


class WakeBus:
    """Sends hints from a thread of its own; `wake`, `strike` and `alias_moved` never block and never raise."""

    def __init__(self, redis_url: str) -> None:
        self._client = connect(redis_url)
        self._queue: queue.SimpleQueue[tuple[_Hint, list[str]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="wake-bus", daemon=True)
        self._thread.start()

    def wake(self, job_ids: Sequence[str], *, has_notices: bool = True) -> None:
        """Tell waiting clients that these jobs have moved; a shard's move is its job's.

        `has_notices`: some end among them may have to be told outside; whoever delivers that looks.
        """
        if job_ids:
            ids = list(dict.fromkeys(parent_of(job_id) or job_id for job_id in job_ids))
            self._queue.put(((WAKE_CHANNEL, has_notices), ids))

    def strike(self, ids: Sequence[str]) -> None:
        """Tell workers that these jobs or calls are no longer wanted."""
        if ids:
            self._queue.put(((STRIKE_CHANNEL, True), list(ids)))

    def alias_moved(self) -> None:
        """Tell workers that an alias points elsewhere; call it once the move is committed."""
        self._queue.put(((ALIAS_CHANNEL, True), []))

    def close(self) -> None:
        """Send what waits, then stop."""
        self._queue.put(None)
        self._thread.join(timeout=5)
        self._client.close()

    def _loop(self) -> None:
        while True:
            item = self._queue.get()
            grouped: dict[_Hint, list[str]] = {}
            is_last = False
            while True:
                if item is None:
                    is_last = True
                    break
                hint, ids = item
                grouped.setdefault(hint, []).extend(ids)
                if sum(map(len, grouped.values())) >= _MAX_GROUP:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            self._publish(grouped)
            if is_last:
                return

    def _publish(self, grouped: dict[_Hint, list[str]]) -> None:
        for (channel, has_notices), ids in grouped.items():
            try:
                self._client.publish(channel, json.dumps(ids if has_notices else [_NO_NOTICES, *ids]))
            except (RedisError, OSError) as exc:
                log.debug("wake.not_sent", channel=channel, reason=str(exc)[:200])


class WakeListener:
    """The api's side: coroutines wait for a job's next move."""

    def __init__(self, redis_url: str) -> None:
        self._client = connect_async(redis_url)
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._on_any: set[asyncio.Event] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to listen; reconnects by itself."""
        self._task = asyncio.create_task(self._listen(), name="wake-listener")

    async def stop(self) -> None:
        """Stop listening."""
        await end_tasks([self._task])
        await self._client.aclose()

    @contextlib.contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever a hint for the job comes; read SQL inside, then wait for it."""
        event = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(event)
        try:
            yield event
        finally:
            events = self._waiting.get(job_id)
            if events is not None:
                events.discard(event)
                if not events:
                    del self._waiting[job_id]

    @contextlib.contextmanager
    def watch_all(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever a hint comes that some end may have to be told outside."""
        event = asyncio.Event()
        self._on_any.add(event)
        try:
            yield event
        finally:
            self._on_any.discard(event)

    async def _listen(self) -> None:
        while True:
            try:
                async with self._client.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await pubsub.subscribe(WAKE_CHANNEL)
                    self._notify(list(self._waiting))  # hints may have been missed: everybody looks again
                    while True:
                        message = await pubsub.get_message(timeout=10)
                        if message is not None:
                            self._notify(_ids_of(message["data"]))
            except (RedisError, OSError) as exc:
                log.info("wake.listener_reconnects", reason=str(exc)[:200])
                await asyncio.sleep(0.5)

    def _notify(self, job_ids: Sequence[str]) -> None:
        if not (job_ids and job_ids[0] == _NO_NOTICES):
            for event in self._on_any:
                event.set()
        for job_id in job_ids:
            for event in self._waiting.get(job_id, ()):
                event.set()


async def wait_event(event: asyncio.Event, timeout_s: float) -> bool:
    """Whether the event was set within the time."""
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return False
    return True


class HintListener:
    """The worker's side: a thread that hands the ids of each hint on a channel to a callback."""

    def __init__(self, redis_url: str, channel: str, on_hint: Callable[[Sequence[str]], None]) -> None:
        self._client = connect(redis_url)
        self._channel = channel
        self._on_hint = on_hint
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=f"{channel}-listener", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def begin_to_stop(self) -> None:
        """Listen no more; returns at once."""
        self._stopping.set()

    def stop(self) -> None:
        """Stop within a second or so."""
        self._stopping.set()
        self._thread.join(timeout=5)
        self._client.close()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._client.pubsub(ignore_subscribe_messages=True) as pubsub:
                    pubsub.subscribe(self._channel)
                    self._receive(pubsub)
            except (RedisError, OSError) as exc:
                log.info("wake.listener_reconnects", channel=self._channel, reason=str(exc)[:200])
                self._stopping.wait(0.5)

    def _receive(self, pubsub: redis.client.PubSub) -> None:
        while not self._stopping.is_set():
            message = pubsub.get_message(timeout=1.0)
            if message is not None:
                self._on_hint(_ids_of(message["data"]))


class StrikeListener(HintListener):
    """Hands ids that were struck out to a callback."""

    def __init__(self, redis_url: str, on_strike: Callable[[Sequence[str]], None]) -> None:
        super().__init__(redis_url, STRIKE_CHANNEL, on_strike)


def _ids_of(data: bytes) -> list[str]:
    """The ids of a hint; none for bytes that are no hint of ours."""
    try:
        ids = json.loads(data)
    except ValueError:
        ids = None
    if not isinstance(ids, list):
        log.warning("wake.hint_unreadable", num_bytes=len(data))
        return []
    return [str(each) for each in ids]
