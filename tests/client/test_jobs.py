"""Lists are read page by page, batches outcome by outcome, and an ended job explains why it has no result."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

import httpx
import pytest

from ondol import AsyncOndol, ItemErrors, JobFailed, JobRequest, WaitTimedOut
from ondol.contract.errors import InvalidPayload
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


def _accepted(request: httpx.Request) -> httpx.Response:
    asked = json.loads(request.content)["jobs"]
    return httpx.Response(200, json={"object": "list", "data": [job_json(f"job_{job['input'][0]}") for job in asked]})


def test_any_number_of_jobs_goes_in_slices_that_can_be_sent_again() -> None:
    requests = [JobRequest("embedding", [str(number)], "m") for number in range(2_001)]
    requests.append(JobRequest("embedding", ["x" * (20 * 1024 * 1024)], "m"))
    server = ScriptedServer([_accepted] * 4)
    jobs = client_of(server).jobs.create_many(requests, idempotency_key="nightly")
    assert [job.id for job in jobs[:2_001]] == [f"job_{number}" for number in range(2_001)]
    assert [len(json.loads(sent.content)["jobs"]) for sent in server.requests] == [1_000, 1_000, 1, 1]
    assert [sent.headers["idempotency-key"] for sent in server.requests] == [f"nightly/{n}" for n in range(4)]


def test_jobs_are_filtered_by_an_aware_time() -> None:
    server = ScriptedServer([_page(has_more=False)])
    list(client_of(server).jobs.list(status="failed", created_after=datetime(2026, 1, 1, tzinfo=UTC)))
    assert dict(server.requests[0].url.params) == {
        "status": "failed",
        "created_after": "1767225600.0",
        "limit": "100",
    }
    with pytest.raises(InvalidPayload, match="without a zone"):
        list(client_of(server).jobs.list(created_after=datetime(2026, 1, 1)))  # noqa: DTZ001 - the mistake itself


def test_many_are_waited_for_with_progress(capsys: pytest.CaptureFixture[str]) -> None:
    ended = [httpx.Response(200, json=job_json(f"job_{n}", "succeeded")) for n in (1, 2)]
    client = client_of(ScriptedServer(ended))
    assert [job.id for job in client.jobs.wait_many(["job_1", "job_2"], progress=True)] == ["job_1", "job_2"]
    assert capsys.readouterr().err.splitlines()[-1] == "2 jobs 2/2"


def test_cancelling_a_task_cancels_the_jobs_that_it_began() -> None:
    waiting = asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        if request.method == "GET":
            waiting.set()
            await asyncio.Event().wait()
        return httpx.Response(200, json=job_json(status="cancelled" if "cancel" in request.url.path else "queued"))

    async def embed() -> None:
        async with AsyncOndol("http://ondol.test", transport=httpx.MockTransport(answer)) as client:
            task = asyncio.create_task(client.embed(["a"], model="m", as_job=True))
            await waiting.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asked: list[str] = []
    asyncio.run(embed())
    assert asked == ["/v1/jobs", "/v1/jobs/job_1", "/v1/jobs/job_1/cancel"]


def test_a_job_without_inputs_has_no_vectors() -> None:
    refused = httpx.Response(406, json=error_json("not_acceptable"))
    with pytest.raises(InvalidPayload, match="no items"):
        client_of(ScriptedServer([refused, refused])).jobs.vectors("job_1")
