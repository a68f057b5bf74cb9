"""Lists are read page by page, batches outcome by outcome, and an ended job explains why it has no result."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from ondol import AsyncOndol, ItemErrors, JobFailed, JobRequest, WaitTimedOut
from tests.client.scripted_server import ScriptedServer, client_of, error_json, job_json

pytestmark = pytest.mark.unit


def _page(*ids: str, has_more: bool) -> httpx.Response:
    return httpx.Response(200, json={"object": "list", "data": [job_json(i) for i in ids], "has_more": has_more})


def test_a_list_follows_the_cursor_to_its_end() -> None:
    server = ScriptedServer([_page("job_3", "job_2", has_more=True), _page("job_1", has_more=False)])
    assert [job.id for job in client_of(server).jobs.list(kind="embedding")] == ["job_3", "job_2", "job_1"]
    assert dict(server.requests[1].url.params) == {"kind": "embedding", "limit": "100", "after": "job_2"}


def test_a_limit_stops_asking_for_more_pages() -> None:
    server = ScriptedServer([_page("job_3", "job_2", has_more=True)])
    assert len(list(client_of(server).jobs.list(limit=2))) == 2
    assert server.requests[0].url.params["limit"] == "2"


def test_the_async_list_follows_the_cursor_too() -> None:
    server = ScriptedServer([_page("job_2", has_more=True), _page("job_1", has_more=False)])

    async def read() -> list[str]:
        async with AsyncOndol("http://ondol.test", transport=server) as client:
            return [job.id async for job in client.jobs.list()]

    assert asyncio.run(read()) == ["job_2", "job_1"]


def test_a_batch_keeps_the_jobs_beside_the_refusals() -> None:
    data = [job_json("job_1"), {"index": 1, "error": {"code": "model_not_found", "message": "no model x"}}]
    server = ScriptedServer([httpx.Response(200, json={"object": "list", "data": data})])
    with pytest.raises(ItemErrors) as caught:
        client_of(server).jobs.create_many([JobRequest("embedding", ["a"], "m"), JobRequest("embedding", ["a"], "x")])
    assert caught.value.errors[1].code == "model_not_found"
    assert caught.value.partial[0].id == "job_1"
    assert caught.value.partial[1] is None


def test_the_result_of_a_failed_job_is_its_error() -> None:
    failed = job_json(status="failed", error={"code": "worker_lost", "message": "three times"})
    conflict = httpx.Response(409, json=error_json("conflict"), headers={"x-should-retry": "false"})
    with pytest.raises(JobFailed, match="three times") as caught:
        client_of(ScriptedServer([conflict, httpx.Response(200, json=failed)])).jobs.result("job_1")
    assert caught.value.code == "worker_lost"


def test_waiting_stops_at_its_limit_and_leaves_the_job_alone() -> None:
    server = ScriptedServer([httpx.Response(200, json=job_json(status="running"))])
    with pytest.raises(WaitTimedOut, match="goes on running"):
        client_of(server).jobs.wait("job_1", timeout_s=0)
    assert server.requests[0].url.params["wait"] == "0.0"


def test_a_key_is_sent_as_bearer_and_kept_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONDOL_API_KEY", "ondol_secret")
    server = ScriptedServer([_page(has_more=False)])
    client = client_of(server)
    list(client.jobs.list())
    assert server.requests[0].headers["authorization"] == "Bearer ondol_secret"
    assert "ondol_secret" not in repr(vars(client))
