"""Calls wait in a bounded number: the next is told at once when to come back, and other projects are still served."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest

from api.call_room import MAX_RETRY_AFTER_S, MIN_RETRY_AFTER_S, CallRoom
from ondol.broker.calls import request_key
from ondol.contract.errors import OndolError, Overloaded
from ondol.contract.states import Priority
from tests.http.api_process import MODEL, Member
from tests.http.conftest import StartApi
from tests.http.peer_worker import PeerWorker
from tests.http.test_bad_input import assert_refused
from tests.servers import RedisServer
from tests.waiting import wait_until

MOST = 3


@pytest.mark.integration
def test_one_call_too_many_is_429_at_once_and_another_project_is_served(
    start_api: StartApi, sqlite_url: str, redis_server: RedisServer
) -> None:
    api = start_api(sqlite_url, project_max_calls_waiting=str(MOST), max_calls_waiting=str(MOST + 1))
    key = request_key("silent@room", Priority.INTERACTIVE)

    def call(member: Member) -> int:
        return member.http.post("/v1/embeddings", json={"model": MODEL, "input": "a text"}).status_code

    with ExitStack() as stack:
        mine, other = (stack.enter_context(closing(api.member())) for _ in range(2))
        silent = PeerWorker(api.database, redis_server.url, "silent@room", answers_calls=False)
        stack.callback(silent.close)
        client = stack.enter_context(redis_server.client())
        threads = stack.enter_context(ThreadPoolExecutor(MOST + 1))
        waiting = [threads.submit(call, mine) for _ in range(MOST)]
        wait_until(lambda: client.llen(key) == MOST, within_s=10, what="the calls to be sent")
        refused = mine.http.post("/v1/embeddings", json={"model": MODEL, "input": "a text"}, timeout=5)
        assert_refused(refused, 429, None)
        assert refused.json()["error"]["code"] == "overloaded" and int(refused.headers["retry-after"]) >= 1
        waiting.append(threads.submit(call, other))
        wait_until(lambda: client.llen(key) == MOST + 1, within_s=10, what="the other project's call to be sent")
        assert_refused(other.http.post("/v1/embeddings", json={"model": MODEL, "input": "b"}, timeout=5), 429, None)
        assert 'outcome="overloaded"' in mine.http.get("/metrics").text
        api.database.write(lambda uow: uow.sessions.end(silent.session_id, reason="test"))  # their calls go on
        with closing(PeerWorker(api.database, redis_server.url, "answering@room")):
            assert [one.result(30) for one in waiting] == [200] * (MOST + 1)
            assert call(mine) == 200, "room is given back"


@pytest.mark.unit
def test_room_is_given_back_however_a_call_ends_and_its_wait_is_measured() -> None:
    now = 100.0
    room = CallRoom(most=2, most_of_project=2, clock=lambda: now)
    for error in (OndolError("failed"), KeyboardInterrupt()):
        with pytest.raises(type(error)), room.hold("a"):
            raise error
    now += 20
    with room.hold("a"), room.hold("a"):
        assert _retry_after_s(room) == MAX_RETRY_AFTER_S, "nothing has ended lately"
    now += 4  # two calls in four seconds
    with room.hold("a"), room.hold("b"):
        waits = [_retry_after_s(room) for _ in range(4)]
    assert waits == [2.0, 4.0, 6.0, 8.0]
    now += 0.001
    for _ in range(1_000):
        with room.hold("a"):
            pass
    now += 0.5
    with room.hold("a"), room.hold("a"):
        assert _retry_after_s(room) == MIN_RETRY_AFTER_S


@pytest.mark.unit
def test_a_refusal_costs_the_same_however_many_calls_have_ended() -> None:
    """Refusals come by the thousand, and while they do, the event loop has least time for them."""
    num_compared = 0

    class Moment(float):
        def __lt__(self, other: float) -> bool:
            nonlocal num_compared
            num_compared += 1
            return super().__lt__(other)

    room = CallRoom(most=1, most_of_project=1, clock=lambda: Moment(100.0))
    for _ in range(5_000):
        with room.hold("b"):
            pass
    num_compared = 0
    with room.hold("b"):
        waits = [_retry_after_s(room) for _ in range(1_000)]
    assert waits == [MIN_RETRY_AFTER_S] * 1_000
    assert num_compared < 10_000


def _retry_after_s(room: CallRoom) -> float:
    with pytest.raises(Overloaded) as refused, room.hold("b"):
        pass
    return refused.value.retry_after_s
