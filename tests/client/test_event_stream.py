"""Events arrive once each and in order, over as many connections as it takes."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from ondol import AsyncOndol, ConnectionFailed, OndolAPIError
from ondol.client.event_stream import EventStream
from ondol.client.retry import RetryPolicy
from tests.client.scripted_server import ScriptedServer, client_of, error_json

pytestmark = pytest.mark.unit


def _event(seq: int, **data: object) -> str:
    kind = "state" if "to" in data else "progress"
    event = {"object": "job.event", "seq": seq, "created_at": 1790000000.0 + seq, "type": kind, "data": data}
    return f"id: {seq}\nevent: {kind}\ndata: {json.dumps(event)}\n\n"


def _stream(*events: str) -> httpx.Response:
    return httpx.Response(200, text=": hello\n\n" + "".join(events), headers={"content-type": "text/event-stream"})


def _broken_off() -> list[httpx.Response | Exception]:
    first = _stream(_event(1, to="queued"), _event(2, to="running"), "id: 3\ndata: {torn")
    second = _stream(_event(2, to="running"), _event(3, to="failed"), _event(4, to="queued"), _event(5, to="succeeded"))
    return [first, httpx.ConnectError("lost"), second, httpx.Response(204)]


def test_a_broken_stream_goes_on_after_the_last_event_seen() -> None:
    server = ScriptedServer(_broken_off())
    client = client_of(server)
    client.policy = RetryPolicy(base_s=0.001)
    assert [event.seq for event in client.jobs.events("job_1")] == [1, 2, 3, 4, 5]
    assert [request.headers.get("last-event-id") for request in server.requests] == [None, "2", "2", "5"]


def test_the_async_client_reads_the_same_stream() -> None:
    server = ScriptedServer(_broken_off())

    async def read() -> list[int]:
        async with AsyncOndol("http://ondol.test", transport=server) as client:
            client.policy = RetryPolicy(base_s=0.001)
            return [event.seq async for event in client.jobs.events("job_1")]

    assert asyncio.run(read()) == [1, 2, 3, 4, 5]


def test_a_stream_of_a_job_that_had_ended_before_is_over_at_once() -> None:
    server = ScriptedServer([httpx.Response(204)])
    assert list(client_of(server).jobs.events("job_1", after_seq=4)) == []
    assert server.requests[0].headers["last-event-id"] == "4"


def test_a_server_that_restarts_while_nothing_happens_is_asked_again() -> None:
    server = ScriptedServer([_stream(), _stream(_event(1, to="succeeded")), httpx.Response(204)])
    client = client_of(server)
    client.policy = RetryPolicy(base_s=0.001)
    assert [event.seq for event in client.jobs.events("job_1")] == [1]


def test_past_events_come_from_all_pages() -> None:
    events = [json.loads(_event(seq, done=seq).split("data: ")[1]) for seq in (1, 2)]
    pages = [{"object": "list", "data": [event], "has_more": event["seq"] == 1} for event in events]
    server = ScriptedServer([httpx.Response(200, json=page) for page in pages])
    assert [event.seq for event in client_of(server).jobs.past_events("job_1")] == [1, 2]
    assert server.requests[1].url.params["after"] == "1"


def test_events_of_an_unknown_job_are_an_error() -> None:
    server = ScriptedServer([httpx.Response(404, json=error_json("job_not_found"))])
    with pytest.raises(OndolAPIError) as caught:
        list(client_of(server).jobs.events("job_1"))
    assert caught.value.code == "job_not_found"


def test_a_server_that_answers_each_time_is_there_however_often_the_stream_is_cut() -> None:
    stream = EventStream("job_1", RetryPolicy(base_s=0.001))
    for _ in range(30):
        stream.answered(200)
        assert stream.feed(": still here") is None
        stream.failed(ConnectionFailed("cut", url="http://ondol.test"))
    assert not stream.is_over


def test_a_server_that_is_gone_is_given_up() -> None:
    stream = EventStream("job_1", RetryPolicy(base_s=0.001))
    stream.answered(200)
    for _ in range(12):
        stream.failed(ConnectionFailed("gone", url="http://ondol.test"))
    with pytest.raises(ConnectionFailed):
        stream.failed(ConnectionFailed("gone", url="http://ondol.test"))
