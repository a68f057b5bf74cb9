"""The client tries again when that can help, as the server asks, and never does a thing twice."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from ondol import (
    ConnectionFailed,
    NoSuchThing,
    Ondol,
    OndolAPIError,
    RequestRefused,
    ServerBusy,
    ServerFailed,
    StateConflict,
)
from ondol.client.retry import RetryPolicy, retry_after_s
from ondol.client.sync_client import DEFAULT_TIMEOUT_S
from tests.client.scripted_server import Reply, ScriptedServer, client_of, error_json, job_json

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


LOST = httpx.ReadError("connection reset")
GONE = httpx.Response(404, json=error_json("not_found"))


@pytest.mark.parametrize(
    "delete",
    [
        lambda client: client.jobs.delete("job_1"),
        lambda client: client.files.delete("file_1"),
        lambda client: client.models.delete("m:1"),
        lambda client: client.models.delete_alias("m", "production"),
    ],
)
def test_a_delete_whose_answer_was_lost_has_worked_when_the_thing_is_gone(delete: Callable[[Ondol], None]) -> None:
    for first in (LOST, httpx.Response(502, headers=SOON)):
        server = ScriptedServer([first, GONE])
        delete(client_of(server))
        assert [request.method for request in server.requests] == ["DELETE", "DELETE"]
    never_there: list[list[Reply]] = [
        [GONE],
        [httpx.ConnectError("refused"), GONE],
        [httpx.Response(429, headers=SOON), GONE],
    ]
    for replies in never_there:
        with pytest.raises(NoSuchThing):
            delete(client_of(ScriptedServer(replies)))


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume", "retry"])
def test_all_tries_to_change_a_job_carry_the_same_idempotency_key(verb: str) -> None:
    server = ScriptedServer([LOST, httpx.Response(200, json=job_json())])
    getattr(client_of(server).jobs, verb)("job_1")
    [first, second] = [request.headers["idempotency-key"] for request in server.requests]
    assert first == second


def test_an_alias_that_a_lost_try_has_moved_is_moved() -> None:
    def aliases(version: str) -> httpx.Response:
        alias = {"object": "model.alias", "name": "production", "version": version, "updated_at": 1790000000.0}
        return httpx.Response(200, json={"object": "list", "data": [alias], "history": []})

    moved = httpx.Response(409, json=error_json("alias_moved"), headers={"x-should-retry": "false"})
    client = client_of(ScriptedServer([LOST, moved, aliases("m:3")]))
    assert client.models.set_alias("m", "production", 3, expected=2).version == "m:3"
    refused: list[list[Reply]] = [[moved], [LOST, moved, aliases("m:4")]]
    for replies in refused:
        with pytest.raises(StateConflict):
            client_of(ScriptedServer(replies)).models.set_alias("m", "production", 3, expected=2)


def test_some_calls_may_have_other_patience() -> None:
    server = ScriptedServer([httpx.Response(503), httpx.Response(200, json=job_json())])
    client = client_of(server)
    with pytest.raises(ServerFailed):
        client.with_options(timeout=1.5, max_retries=0).jobs.get("job_1")
    assert server.requests[0].extensions["timeout"]["read"] == 1.5
    client.jobs.get("job_1")
    assert server.requests[1].extensions["timeout"]["read"] == DEFAULT_TIMEOUT_S


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


def test_a_server_that_keeps_silent_is_not_believed_to_restart() -> None:
    pages = [httpx.Response(200, json={"object": "list", "data": []})]
    server = ScriptedServer([*pages, *[httpx.ReadTimeout("silence")] * 3])
    client = client_of(server)
    client.policy = RetryPolicy(max_retries=2, base_s=0.001)
    client.models.list()
    with pytest.raises(ConnectionFailed):
        client.models.list()
    assert len(server.requests) == 1 + 3


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
