"""Calls travel beside Celery: one list a device and class, one reply list an api process."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace

import numpy as np
import pytest

from ondol.broker.call_worker import CallTaker, ReplySender
from ondol.broker.calls import (
    CallReply,
    CallRequest,
    CallSender,
    error_header,
    reply_header,
    reply_key,
    request_key,
)
from ondol.broker.wake import StrikeListener
from ondol.contract.errors import BrokerUnavailable, DeadlineExceeded, InputTooLong
from ondol.contract.frames import Header, pack_frame, unpack_frame
from ondol.contract.jobs import Inputs, dump_inputs
from ondol.contract.kinds import JobKind
from ondol.contract.states import Priority
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

WORKER, API = "cpu0@test", "api_1"


def _request(text: str = "the kettle is warm", *, within_s: float = 20.0) -> CallRequest:
    return CallRequest("ver_1", "tiny:1", JobKind.EMBEDDING, {}, [text], time.time() + within_s)


def _reply(request: CallRequest) -> CallReply:
    vectors = np.full((1, 4), len(request.inputs[0]), dtype=np.float32)
    return CallReply(vectors, [3], [False], {}, "tiny:1", "float32", "torch", {"forward_s": 0.1})


class EchoWorker:
    """Answers every call from a thread: a text that begins with `no` is refused."""

    def __init__(self, redis: RedisServer) -> None:
        self._taker, self._replies = CallTaker(redis.url, WORKER), ReplySender(redis.url)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="echo-worker")
        self._thread.start()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            for api_id, request in self._taker.take(64):
                if str(request.inputs[0]).startswith("no"):
                    error = InputTooLong("too long", param="input[0]")
                    self._replies.send(api_id, pack_frame(error_header(request.id, error)))
                else:
                    header, body = reply_header(request.id, _reply(request))
                    self._replies.send(api_id, pack_frame(header, (body,)))

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._taker.close()
        self._replies.close()


@contextmanager
def _worker(redis: RedisServer) -> Iterator[EchoWorker]:
    worker = EchoWorker(redis)
    try:
        yield worker
    finally:
        worker.stop()


@asynccontextmanager
async def _sender(redis: RedisServer) -> AsyncIterator[CallSender]:
    sender = CallSender(redis.url, API)
    await sender.start()
    try:
        yield sender
    finally:
        await sender.stop()


def test_a_call_is_answered(empty_redis: RedisServer) -> None:
    async def call() -> CallReply:
        async with _sender(empty_redis) as sender:
            reply = await sender.call(WORKER, _request("warm"))
            assert sender.in_flight(WORKER) == 0
            return reply

    with _worker(empty_redis):
        reply = asyncio.run(call())
    np.testing.assert_array_equal(reply.vectors, [[4, 4, 4, 4]])
    assert (reply.tokens, reply.truncated, reply.model) == ([3], [False], "tiny:1")


def test_a_refusal_comes_back_as_the_error_it_was(empty_redis: RedisServer) -> None:
    async def call() -> None:
        async with _sender(empty_redis) as sender:
            await sender.call(WORKER, _request("no"))

    with _worker(empty_redis), pytest.raises(InputTooLong, match="too long") as caught:
        asyncio.run(call())
    assert caught.value.param == "input[0]"


def test_concurrent_calls_travel_together(empty_redis: RedisServer) -> None:
    async def call_all() -> list[CallReply]:
        async with _sender(empty_redis) as sender:
            return await asyncio.gather(*(sender.call(WORKER, _request("x" * (i + 1))) for i in range(200)))

    with empty_redis.client() as client:
        client.config_resetstat()
        with _worker(empty_redis):
            replies = asyncio.run(call_all())
        num_pushes = client.info("commandstats")["cmdstat_rpush"]["calls"]
    assert [float(np.asarray(reply.vectors)[0, 0]) for reply in replies] == [i + 1 for i in range(200)]
    assert num_pushes < 60, "requests and replies each gather while a push is in flight"


MANY: Inputs = [f"text {i}: " + "warm, \u00fc\u4f60\U0001f600 " * 20 for i in range(40_000)]
"""Megabytes of texts."""


def test_a_long_request_is_packed_beside_the_loop() -> None:
    """How long the loop stands still beside the packing, against how long it does when it packs by itself."""
    header = replace(_request(), inputs=MANY).to_header(API)
    assert json.loads(_head(pack_frame(header))) == json.loads(_head(pack_frame(header, long_list="inputs")))

    async def longest_gap(*, on_thread: bool) -> float:
        sender, longest, packing = CallSender("redis://127.0.0.1:1", API), 0.0, None
        async with asyncio.TaskGroup() as group:
            at = time.perf_counter()
            while packing is None or not packing.done():
                if packing is None:
                    work = sender._pack(replace(_request(), inputs=MANY)) if on_thread else _here(header)
                    packing = group.create_task(work)
                await asyncio.sleep(0)
                longest, at = max(longest, time.perf_counter() - at), time.perf_counter()
        return longest

    here = min(asyncio.run(longest_gap(on_thread=False)) for _ in range(3))
    beside = min(asyncio.run(longest_gap(on_thread=True)) for _ in range(3))
    assert beside < here / 2, f"{beside * 1000:.0f} ms, and by itself {here * 1000:.0f} ms"


async def _here(header: Header) -> bytes:
    return pack_frame(header)


def _head(frame: bytes) -> bytes:
    return frame[12:]


@pytest.mark.parametrize("inputs", [["a", '\u00fc "quoted"'], [[1, 2], [3]], [{"text": "a", "text_pair": "b"}, "c"]])
def test_inputs_are_written_one_by_one_as_they_would_be_at_once(inputs: Inputs) -> None:
    at_once = json.dumps(inputs, ensure_ascii=False, separators=(",", ":")).encode()
    assert dump_inputs(inputs) == at_once
    header = replace(_request(), inputs=inputs).to_header(API)
    found, body = unpack_frame(pack_frame(header, [b"body"], long_list="inputs"))
    assert found == header and body.tobytes() == b"body"


def test_a_call_that_nobody_answers_ends_at_its_deadline(empty_redis: RedisServer) -> None:
    async def call() -> int:
        async with _sender(empty_redis) as sender:
            with pytest.raises(DeadlineExceeded):
                await sender.call(WORKER, _request(within_s=0.2))
            return sender.in_flight(WORKER)

    assert asyncio.run(call()) == 0
    with empty_redis.client() as client:
        assert 0 < client.ttl(request_key(WORKER, Priority.INTERACTIVE)) <= 120


def test_a_cancelled_call_is_struck_out(empty_redis: RedisServer) -> None:
    struck: list[str] = []
    listener = StrikeListener(empty_redis.url, struck.extend)
    listener.start()
    request = _request()

    async def cancel() -> int:
        async with _sender(empty_redis) as sender:
            call = asyncio.create_task(sender.call(WORKER, request))
            await asyncio.sleep(0)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call
            await asyncio.gather(*sender._strikes)
            return sender.in_flight(WORKER)

    try:
        with empty_redis.client() as client:
            wait_until(lambda: client.pubsub_numsub("ondol:strike")[0][1], within_s=10, what="the listener to listen")
        assert asyncio.run(cancel()) == 0
        wait_until(lambda: struck == [request.id], within_s=10, what="the strike")
    finally:
        listener.stop()


def test_calls_go_on_after_redis_was_restarted(empty_redis: RedisServer) -> None:
    async def call() -> None:
        async with _sender(empty_redis) as sender:
            await sender.call(WORKER, _request("before"))
            empty_redis.restart()  # on this thread: the server ends with the thread that started it
            for _ in range(50):  # the first ones may meet a connection that has ended
                with suppress(BrokerUnavailable, DeadlineExceeded):
                    await sender.call(WORKER, _request("after", within_s=2))
                    return
            raise AssertionError("no call was answered after the restart")

    with _worker(empty_redis):
        asyncio.run(call())


def test_a_reply_that_is_no_reply_stops_nobody(empty_redis: RedisServer) -> None:
    async def call() -> CallReply:
        async with _sender(empty_redis) as sender:
            await sender.call(WORKER, _request())
            with empty_redis.client() as client:
                for junk in (b"junk", pack_frame({"id": 1}), pack_frame({"id": "x", "ok": True, "tokens": 3})):
                    client.rpush(reply_key(API), junk)
            return await sender.call(WORKER, _request("still"))

    with _worker(empty_redis):
        assert asyncio.run(call()).tokens == [3]


def test_a_request_that_is_no_request_stops_nobody(empty_redis: RedisServer) -> None:
    good = _request()
    with empty_redis.client() as client:
        key = request_key(WORKER, Priority.INTERACTIVE)
        junk = [b"junk", pack_frame({"id": 1}), pack_frame(_request().to_header(API) | {"options": 5})]
        client.rpush(key, *junk, pack_frame(good.to_header(API)))
    taker = CallTaker(empty_redis.url, WORKER)
    assert [(api_id, request.id) for api_id, request in taker.take(10)] == [(API, good.id)]
    taker.close()


def test_a_call_that_cannot_be_sent_leaves_nothing_behind(empty_redis: RedisServer) -> None:
    async def call() -> int:
        async with _sender(empty_redis) as sender:
            with pytest.raises(TypeError, match="JSON"):
                await sender.call(WORKER, replace(_request(), options={"no": object()}))
            return sender.in_flight(WORKER)

    assert asyncio.run(call()) == 0
    with empty_redis.client() as client:
        assert not client.exists(request_key(WORKER, Priority.INTERACTIVE))


def test_half_a_character_reaches_the_worker_as_it_is(empty_redis: RedisServer) -> None:
    asked = _request("\ud800")
    with empty_redis.client() as client:
        client.rpush(request_key(WORKER, Priority.INTERACTIVE), pack_frame(asked.to_header(API)))
    taker = CallTaker(empty_redis.url, WORKER)
    assert [request.inputs for _, request in taker.take(10)] == [["\ud800"]]
    taker.close()


def test_interactive_calls_are_taken_first(empty_redis: RedisServer) -> None:
    with empty_redis.client() as client:
        for priority in (Priority.BULK, Priority.INTERACTIVE):
            client.rpush(request_key(WORKER, priority), pack_frame(_request(priority.value).to_header(API)))
    taker = CallTaker(empty_redis.url, WORKER)
    taken = [request.inputs for _ in range(2) for _, request in taker.take(1)]
    taker.close()
    assert taken == [["interactive"], ["bulk"]]
