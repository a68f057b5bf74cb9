"""The client tries again when that can help, as the server asks, and never does a thing twice."""

from __future__ import annotations

import httpx
import pytest

from ondol import ConnectionFailed, OndolAPIError, RequestRefused, ServerBusy, StateConflict
from ondol.client.retry import RetryPolicy, retry_after_s
from tests.client.scripted_server import ScriptedServer, client_of, error_json, job_json

pytestmark = pytest.mark.unit

SOON = {"retry-after-ms": "1"}


def test_a_busy_server_is_asked_again_after_the_time_it_names() -> None:
    server = ScriptedServer([httpx.Response(429, headers=SOON), httpx.Response(200, json=job_json())])
    assert client_of(server).jobs.get("job_1").status == "queued"
    assert len(server.requests) == 2


def test_all_tries_of_a_submit_carry_the_same_idempotency_key() -> None:
    lost = httpx.ConnectError("connection refused")
    server = ScriptedServer([lost, httpx.Response(503, headers=SOON), httpx.Response(202, json=job_json())])
    client_of(server).jobs.create("embedding", input=["a"], model="m")
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_two_submits_carry_different_idempotency_keys() -> None:
    server = ScriptedServer([httpx.Response(202, json=job_json()) for _ in range(2)])
    client = client_of(server)
    for _ in range(2):
        client.jobs.create("embedding", input=["a"], model="m")
    assert server.requests[0].headers["idempotency-key"] != server.requests[1].headers["idempotency-key"]


def test_a_refused_request_is_not_repeated_and_its_error_says_where() -> None:
    refused = httpx.Response(
        400, json=error_json("invalid_payload", "x", "options.pooling"), headers={"x-request-id": "r1"}
    )
    server = ScriptedServer([refused])
    with pytest.raises(RequestRefused) as caught:
        client_of(server).jobs.create("embedding", input=["a"], model="m")
    error = caught.value
    assert (error.status, error.code, error.param, error.request_id) == (
        400,
        "invalid_payload",
        "options.pooling",
        "r1",
    )
    assert len(server.requests) == 1


@pytest.mark.parametrize(("told", "num_requests"), [("false", 1), ("true", 2)])
def test_the_server_decides_whether_a_conflict_is_tried_again(told: str, num_requests: int) -> None:
    conflict = httpx.Response(409, json=error_json("conflict"), headers={"x-should-retry": told, **SOON})
    server = ScriptedServer([conflict, httpx.Response(400, json=error_json("done"))])
    with pytest.raises(OndolAPIError) as caught:
        client_of(server).jobs.cancel("job_1")
    assert isinstance(caught.value, StateConflict) == (told == "false")
    assert len(server.requests) == num_requests


def test_a_server_that_asks_for_more_patience_than_allowed_is_not_waited_for() -> None:
    server = ScriptedServer([httpx.Response(429, json=error_json("overloaded"), headers={"retry-after": "3600"})])
    with pytest.raises(ServerBusy) as caught:
        client_of(server).jobs.get("job_1")
    assert caught.value.retry_after_s == 3600


def test_no_server_at_all_is_its_own_error_after_the_last_try() -> None:
    policy_tries = 1 + 2
    server = ScriptedServer([httpx.ConnectError("refused")] * policy_tries)
    client = client_of(server)
    client.policy = RetryPolicy(max_retries=2, base_s=0.001)
    with pytest.raises(ConnectionFailed, match="ondol up"):
        client.models.list()
    assert len(server.requests) == policy_tries


def test_back_off_doubles_up_to_its_limit() -> None:
    policy = RetryPolicy(max_retries=10, base_s=1.0, max_backoff_s=4.0)
    delays = [policy.delay_after_failure(tries) for tries in range(1, 6)]
    for delay, full in zip(delays, (1.0, 2.0, 4.0, 4.0, 4.0), strict=True):
        assert delay is not None
        assert full / 2 <= delay <= full
    assert policy.delay_after_failure(11) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({}, None),
    ],
)
def test_both_headers_and_both_forms_of_retry_after_are_understood(
    headers: dict[str, str], expected: float | None
) -> None:
    assert retry_after_s(headers) == expected
