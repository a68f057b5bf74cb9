"""Both clients send `webhook` with any kind of job, and read notices and the secret."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from ondol import AsyncOndol, JobRequest
from ondol.client.errors import BadAnswer
from tests.client.scripted_server import ScriptedServer, client_of, job_json

pytestmark = pytest.mark.unit

URL = "https://example.org/hook"
NOTICE: dict[str, Any] = {
    "object": "job.notice",
    "id": "ntc_1",
    "job_id": "job_1",
    "seq": 3,
    "channel": "webhook",
    "status": "waiting",
    "num_tries": 2,
    "next_try_at": 1790000010.0,
    "last_try_at": 1790000000.0,
    "last_answer": "500 Internal Server Error",
    "created_at": 1789999990.0,
    "accepted_at": None,
}


def test_every_way_of_submitting_carries_the_webhook() -> None:
    accepted = httpx.Response(202, json=job_json(webhook=URL))
    server = ScriptedServer([accepted, accepted, httpx.Response(200, json={"data": [job_json()]})])
    with client_of(server) as client:
        job = client.jobs.create("embedding", input="x", model="m", webhook=URL)
        client.fine_tune("file_" + "0" * 26, model="m", name="n", webhook=URL, priority="bulk", metadata={"a": 1})
        client.jobs.create_many([JobRequest("embedding", "x", "m", webhook=URL)])
    bodies = [json.loads(request.content) for request in server.requests]
    assert job.webhook == bodies[0]["webhook"] == bodies[1]["webhook"] == bodies[2]["jobs"][0]["webhook"] == URL
    assert (bodies[1]["priority"], bodies[1]["metadata"]) == ("bulk", {"a": 1})


def test_notices_and_the_secret_are_read_by_the_async_client() -> None:
    page = httpx.Response(200, json={"object": "list", "data": [NOTICE]})
    secret = httpx.Response(200, json={"object": "webhook.secret", "secret": "whsec_x"})
    server = ScriptedServer([page, httpx.Response(202, json=NOTICE), secret, secret])

    async def walk() -> None:
        async with AsyncOndol("http://ondol.test", transport=server) as client:
            [notice] = await client.jobs.notices("job_1")
            assert (notice.status, notice.num_tries, notice.accepted_at) == ("waiting", 2, None)
            assert notice.next_try_at == datetime.fromtimestamp(1790000010, UTC)
            assert await client.jobs.redeliver("job_1", notice.id) == notice
            assert await client.webhooks.secret() == await client.webhooks.rotate_secret() == "whsec_x"

    asyncio.run(walk())
    assert [f"{request.method} {request.url.path}" for request in server.requests] == [
        "GET /v1/jobs/job_1/notices",
        "POST /v1/jobs/job_1/notices/ntc_1/redeliver",
        "GET /v1/webhooks/secret",
        "POST /v1/webhooks/secret/rotate",
    ]


def test_an_answer_that_is_no_notice_is_said_to_be_none() -> None:
    server = ScriptedServer([httpx.Response(200, json={"data": [{"id": "ntc_1"}]})])
    with client_of(server) as client, pytest.raises(BadAnswer, match="not a notice"):
        client.jobs.notices("job_1")
