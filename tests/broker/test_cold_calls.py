"""Calls to a model that is still being brought here: bounded, no burden to other models, each answered once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ondol.broker.call_worker import CallTaker, ReplySender
from ondol.broker.calls import CallRequest, reply_key, request_key
from ondol.broker.connection import connect
from ondol.contract.errors import ModelNotFound
from ondol.contract.frames import pack_frame, unpack_frame
from ondol.contract.kinds import JobKind
from ondol.metrics.roles import WorkerMetrics
from tests.servers import RedisServer
from tests.waiting import wait_until
from workers.batcher import Batcher
from workers.call_loop import CallLoop
from workers.cold_calls import MAX_CALLS, MAX_CHARACTERS, ColdCalls
from workers.in_flight import InFlight

pytestmark = pytest.mark.integration

WORKER, API = "cpu0@test", "api_1"
LIMIT_S = 20.0
STOP_LIMIT_S = 2.0
"""Longer than the loop waits for Redis."""
DEADLINE_S = 60.0


class LibraryOfSlowModels:
    """Stands for a library whose store takes its time: `slow-…` come when they are let in, others are not there."""

    def __init__(self) -> None:
        self.let_in = threading.Event()

    def is_prepared(self, _version_id: str, _dtype: str) -> bool:
        return False

    def version(self, version_id: str) -> Any:
        if version_id.startswith("slow"):
            assert self.let_in.wait(DEADLINE_S)
        raise ModelNotFound(f"no model {version_id}")


class Stand:
    """A call loop over real lists, and what an api process sends it and hears."""

    def __init__(self, redis: RedisServer) -> None:
        self.library = LibraryOfSlowModels()
        self._client = connect(redis.url)
        self.loop = CallLoop(
            taker=CallTaker(redis.url, WORKER),
            replies=ReplySender(redis.url),
            library=self.library,  # type: ignore[arg-type]  # stands for it
            batcher=Batcher(max_batch_tokens=64),
            in_flight=InFlight(gate=None),  # type: ignore[arg-type]  # no call comes as far as to be registered
            max_open_tokens=64,
            stages=WorkerMetrics().stages,
        )
        self.answers: list[dict[str, Any]] = []

    def ask(self, version_id: str, num: int, text: str = "warm") -> list[str]:
        """Put calls into the list; their ids."""
        seconds, micros = self._client.time()
        deadline_at = seconds + micros / 1e6 + DEADLINE_S
        made = [CallRequest(version_id, version_id, JobKind.EMBEDDING, {}, [text], deadline_at) for _ in range(num)]
        frames = [pack_frame(request.to_header(API)) for request in made]
        self._client.rpush(request_key(WORKER, made[0].priority), *frames)
        return [request.id for request in made]

    def hear(self) -> Counter[str]:
        """How often each code has been answered so far."""
        frames: Any = self._client.lpop(reply_key(API), 10_000) or []
        self.answers += [dict(unpack_frame(frame)[0]) for frame in frames]
        return Counter(str(answer["error"]["code"]) for answer in self.answers)

    def wait_for(self, **expected: int) -> None:
        """Wait until exactly so many answers of each code have come."""
        wait_until(lambda: self.hear() == expected, within_s=LIMIT_S, what=f"{expected}; heard {self.hear()}")

    def num_waiting_in_redis(self) -> int:
        return int(self._client.llen(request_key(WORKER, CallRequest("", "", JobKind.EMBEDDING, {}, [], 0).priority)))

    def close(self) -> None:
        self.library.let_in.set()
        self.loop.stop(limit_s=LIMIT_S)
        self.loop.close()
        self._client.close()


@pytest.fixture
def stand(empty_redis: RedisServer) -> Iterator[Stand]:
    with _closing(Stand(empty_redis)) as made:
        yield made


@contextmanager
def _closing(made: Stand) -> Iterator[Stand]:
    made.loop.start()
    try:
        yield made
    finally:
        made.close()


def test_calls_to_a_model_that_is_not_here_wait_up_to_a_bound(stand: Stand) -> None:
    asked = stand.ask("slow", MAX_CALLS + 300)
    # One is with the thread that brings the model.
    stand.wait_for(overloaded=299)
    assert stand.num_waiting_in_redis() == 0, "what is beyond the bound is told so at once"
    stand.ask("gone", 1)
    stand.wait_for(overloaded=300)
    stand.library.let_in.set()
    stand.wait_for(overloaded=300, model_not_found=MAX_CALLS + 1)
    stand.ask("gone", 1)
    stand.wait_for(overloaded=300, model_not_found=MAX_CALLS + 2)
    assert set(asked) <= {str(answer["id"]) for answer in stand.answers}


def test_long_texts_are_bounded_too(stand: Stand) -> None:
    stand.ask("slow", 1)
    wait_until(lambda: stand.num_waiting_in_redis() == 0, within_s=LIMIT_S, what="the model to be asked for")
    stand.ask("slow", 37, text="x" * (MAX_CHARACTERS // 32))
    stand.wait_for(overloaded=5)
    stand.library.let_in.set()
    stand.wait_for(overloaded=5, model_not_found=33)


def test_a_pair_that_is_none_ends_no_worker() -> None:
    refused: list[str] = []
    waiting = ColdCalls(lambda _api, _call: None, lambda _api, call, _error: refused.append(call.id))
    pairs: Any = [{"text": 7, "text_pair": None}]
    calls = [CallRequest("slow", "slow", JobKind.TEXT_CLASSIFICATION, {}, pairs, deadline_at=0.0) for _ in range(2)]
    for call in calls:
        waiting.add(API, call)
    waiting.stop()
    assert refused == [call.id for call in calls], "both have waited for their model"


def test_calls_to_one_slow_model_hold_back_no_other(stand: Stand) -> None:
    stand.ask("slow", 100)
    stand.ask("gone", 3)
    stand.wait_for(model_not_found=3)


def test_every_call_that_was_taken_is_answered_once_when_the_worker_stops(stand: Stand) -> None:
    asked = stand.ask("slow-1", 20) + stand.ask("slow-2", 20)
    wait_until(lambda: stand.num_waiting_in_redis() == 0, within_s=LIMIT_S, what="all calls to be taken")
    stand.loop.stop(limit_s=STOP_LIMIT_S)
    late = stand.ask("slow-3", 1)
    stand.library.let_in.set()
    stand.loop.close()
    wait_until(lambda: stand.hear().total() == len(asked), within_s=LIMIT_S, what="all answers")
    assert stand.hear()["not_ready"] >= 38, "but for two that were with the threads that bring the models"
    heard = Counter(str(answer["id"]) for answer in stand.answers)
    assert heard == dict.fromkeys(asked, 1) and stand.num_waiting_in_redis() == len(late)
