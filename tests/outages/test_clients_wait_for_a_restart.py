"""A client waits for a server that it has met before, and gives up soon on one that never was there."""

from __future__ import annotations

import itertools

import httpx
import pytest

from ondol import ConnectionFailed, ServerFailed
from ondol.client.retry import RetryPolicy
from tests.client.scripted_server import Reply, ScriptedServer, client_of, job_json

pytestmark = pytest.mark.unit

REFUSED = httpx.ConnectError("connection refused")
RETRIES = 2
RESTART_S = 30.0
"""What a process takes at most to stop and to be ready again, on a machine that has other work."""


def answers(*replies: Reply) -> ScriptedServer:
    return ScriptedServer(list(replies))


def good() -> httpx.Response:
    return httpx.Response(200, json=job_json())


def unready() -> httpx.Response:
    return httpx.Response(503, headers={"retry-after-ms": "1"})


@pytest.mark.parametrize("failure", [lambda: REFUSED, unready])
def test_a_server_that_has_answered_gets_three_times_the_tries(failure: object) -> None:
    assert callable(failure)
    server = answers(good(), *(failure() for _ in range(3 * RETRIES)), good())
    client = client_of(server)
    client.policy = RetryPolicy(max_retries=RETRIES, base_s=0.001)
    client.jobs.get("job_1")
    assert client.jobs.get("job_1").status == "queued"


def test_a_server_that_never_answered_is_given_up_after_the_tries_that_were_asked_for() -> None:
    for failure, error in ((REFUSED, ConnectionFailed), (unready(), ServerFailed)):
        server = answers(*itertools.repeat(failure, RETRIES + 1), good())
        client = client_of(server)
        client.policy = RetryPolicy(max_retries=RETRIES, base_s=0.001)
        with pytest.raises(error):
            client.jobs.get("job_1")
        assert len(server.requests) == RETRIES + 1


def test_a_full_queue_is_no_restart() -> None:
    busy = httpx.Response(429, headers={"retry-after-ms": "1"})
    server = answers(good(), *[busy] * (RETRIES + 1))
    client = client_of(server)
    client.policy = RetryPolicy(max_retries=RETRIES, base_s=0.001)
    client.jobs.get("job_1")
    with pytest.raises(Exception, match="429"):
        client.jobs.get("job_1")


def test_no_retries_are_none_whoever_has_answered() -> None:
    server = answers(good(), REFUSED)
    client = client_of(server)
    client.jobs.get("job_1")
    with pytest.raises(ConnectionFailed):
        client.with_options(max_retries=0).jobs.get("job_1")


def test_the_defaults_outlast_a_restart_whatever_the_jitter() -> None:
    policy = RetryPolicy()
    policy.answered(200)
    shortest_s, tries = 0.0, 0
    for tries in itertools.count(1):
        delay_s = policy.delay_after_failure(tries)
        if delay_s is None:
            break
        shortest_s += min(policy.base_s * 2 ** (tries - 1), policy.max_backoff_s) / 2
    assert tries - 1 == 3 * policy.max_retries
    assert shortest_s > RESTART_S


def test_what_the_server_asks_for_is_waited_and_after_the_first_tries_at_least_the_back_off() -> None:
    policy = RetryPolicy(max_retries=RETRIES, base_s=100.0, max_backoff_s=100.0)
    policy.answered(200)
    asked = {"retry-after": "1"}
    assert [policy.delay_after_answer(tries, 503, asked) for tries in (1, RETRIES)] == [1.0, 1.0]
    later = policy.delay_after_answer(RETRIES + 1, 503, asked)
    assert later is not None and later >= 50.0
    assert policy.delay_after_answer(3 * RETRIES + 1, 503, asked) is None
