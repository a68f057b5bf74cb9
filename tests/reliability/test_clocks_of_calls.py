"""A call's deadline is the same moment for the api that sent it and for its worker, whatever their clocks say."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from ondol.broker.call_worker import CallTaker
from ondol.broker.redis_clock import RedisClock
from ondol.control.troubles import find_troubles
from tests.cluster import REPOSITORY
from tests.reliability.conftest import MakeHouse
from tests.reliability.house import LIMIT_S
from tests.servers import RedisServer
from tests.waiting import wait_until

WORKER = "cpu0@test"
WITHIN_S = 60.0
SLACK_S = 20.0
"""What a start of Python on a busy machine may take of the call's time."""


@pytest.mark.integration
@pytest.mark.parametrize("ahead_s", [600, -600], ids=["ahead", "behind"])
def test_the_deadline_of_a_call_does_not_depend_on_the_clock_of_its_api(empty_redis: RedisServer, ahead_s: int) -> None:
    begun_at = time.time()
    module = ("tests.reliability.skewed_process", str(ahead_s), "tests.reliability.skewed_caller")
    command = [sys.executable, "-m", *module, empty_redis.url, WORKER, str(WITHIN_S)]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=LIMIT_S)
    taker = CallTaker(empty_redis.url, WORKER)
    try:
        [(_, request)] = taker.take(1)
    finally:
        taker.close()
    assert begun_at < request.deadline_at - WITHIN_S < begun_at + SLACK_S


@pytest.mark.chaos
@pytest.mark.integration
@pytest.mark.parametrize("ahead_s", [600, -600], ids=["ahead", "behind"])
def test_a_worker_with_another_clock_answers_calls_and_is_told_of(
    make_house: MakeHouse, postgresql_url: str, ahead_s: int
) -> None:
    with make_house(postgresql_url) as house:
        house.start_api()
        house.start_reconciler()
        skewed = ("tests.reliability.skewed_process", str(ahead_s), "tests.faulty_worker")
        house.start_program("worker0", *skewed, ONDOL_DEVICE="cpu:0", ONDOL_CORES="0")
        wait_until(house.session_of, within_s=LIMIT_S, what="a session")
        answer = house.http.post("/v1/embeddings", json={"model": "tiny", "input": "the floor is warm"})
        assert answer.status_code == 200, answer.text
        [(worker, told_s)] = find_troubles(postgresql_url).skewed_workers.items()
        assert worker.startswith("cpu0@") and told_s == pytest.approx(ahead_s, abs=2)
        assert house.lines_of("worker0", "clock.skewed")


@pytest.mark.unit
def test_a_time_goes_to_redis_and_back() -> None:
    clock = RedisClock()
    assert (clock.is_known, clock.is_stale) == (False, True)
    clock.learn((1_000_000, 500_000), asked_at=time.monotonic())
    assert (clock.is_known, clock.is_stale) == (True, False)
    at = time.time() + 30
    assert clock.by_redis(at) == pytest.approx(1_000_030.5, abs=5)
    assert clock.by_own(clock.by_redis(at)) == pytest.approx(at, abs=1)


@pytest.mark.unit
def test_an_answer_that_took_long_does_not_spoil_what_is_known() -> None:
    clock = RedisClock()
    clock.learn((1_000_000, 0), asked_at=time.monotonic() - 9)
    assert clock.by_redis(time.time()) == pytest.approx(1_000_004.5, abs=2), "better than nothing"
    clock.learn((1_000_000, 0), asked_at=time.monotonic())
    clock.learn((1_000_000, 0), asked_at=time.monotonic() - 9)
    assert clock.by_redis(time.time()) == pytest.approx(1_000_000, abs=2)
