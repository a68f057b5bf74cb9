"""What is too much for a body goes as a file, which is gone afterwards, however the job ends."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from ondol import JobFailed
from ondol.client import inputs as limits
from ondol.contract.errors import InvalidPayload
from tests.client.scripted_server import ScriptedServer, client_of, error_json, job_json

pytestmark = pytest.mark.unit

FILE_ID = "file_" + "0" * 26
TEXTS = ["x" * 400, "y" * 400, "z" * 400]


@pytest.fixture
def small_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies of at most a thousand bytes."""
    monkeypatch.setattr(limits, "MAX_BODY_BYTES", 1_000)


def _uploaded(request: httpx.Request) -> httpx.Response:
    content = request.read()
    head, _, rest = content.partition(b"octet-stream\r\n\r\n")
    digest = hashlib.sha256(rest.rpartition(b"\r\n--")[0]).hexdigest()
    assert b'name="purpose"' in head and b"expires_after[seconds]" in head
    times = {"created_at": 1790000000, "expires_at": None}
    about = {"id": FILE_ID, "filename": "inputs.jsonl", "purpose": "batch", "bytes": 1, "sha256": digest}
    return httpx.Response(200, json={**about, **times})


def _vectors(num: int) -> httpx.Response:
    buffer = io.BytesIO()
    np.save(buffer, np.ones((num, 2), dtype=np.float32))
    return httpx.Response(200, content=buffer.getvalue())


def _job(status: str = "queued", *, done: int = 0) -> httpx.Response:
    progress = {"done": done, "total": 3, "unit": "inputs"}
    return httpx.Response(200, json=job_json("job_1", status, progress=progress))


GONE = httpx.Response(200, json={"deleted": True})


def _asked(server: ScriptedServer) -> list[tuple[str, str]]:
    return [(request.method, request.url.path) for request in server.requests]


def test_large_inputs_are_uploaded_run_and_forgotten(small_bodies: None) -> None:
    server = ScriptedServer([_uploaded, _job(), _job("succeeded"), _vectors(3), GONE])
    vectors = client_of(server).embed(iter(TEXTS), model="m")
    assert vectors.shape == (3, 2)
    body: dict[str, Any] = json.loads(server.requests[1].content)
    assert (body["input_file"], body["input_columns"]) == (FILE_ID, {"text": "text"})
    assert "input" not in body and body["options"] == {"encoding": "base64"}
    assert _asked(server)[-1] == ("DELETE", f"/v1/files/{FILE_ID}")


def test_pairs_are_uploaded_with_both_columns(small_bodies: None) -> None:
    items = b"".join(b'{"index":%d,"output":[]}\n' % i for i in range(3))
    server = ScriptedServer([_uploaded, _job(), _job("succeeded"), httpx.Response(200, content=items), GONE])
    found = client_of(server).classify([(text, "other") for text in TEXTS], model="m", as_job=True)
    assert found == [[], [], []]
    assert json.loads(server.requests[1].content)["input_columns"] == {"text": "text", "text_pair": "text_pair"}


def test_a_body_that_the_server_finds_too_large_goes_as_a_file() -> None:
    refused = httpx.Response(413, json=error_json("payload_too_large"))
    server = ScriptedServer([refused, _uploaded, _job(), _job("succeeded"), _vectors(3), GONE])
    assert client_of(server).embed(TEXTS, model="m", as_job=True).shape == (3, 2)


def test_the_file_goes_when_the_job_is_refused_or_fails(small_bodies: None) -> None:
    refused = httpx.Response(400, json=error_json("invalid_payload", "no", "options.poling"))
    server = ScriptedServer([_uploaded, refused, GONE])
    with pytest.raises(Exception, match="no"):
        client_of(server).embed(TEXTS, model="m", poling="x")
    assert _asked(server)[-1][0] == "DELETE"
    conflict = httpx.Response(409, json=error_json("illegal_transition"), headers={"x-should-retry": "false"})
    server = ScriptedServer([_uploaded, _job(), _job("failed"), conflict, GONE])
    with pytest.raises(JobFailed):
        client_of(server).embed(TEXTS, model="m", as_job=True)
    assert _asked(server)[-1][0] == "DELETE"


def test_ctrl_c_cancels_the_job_and_deletes_its_file(small_bodies: None) -> None:
    server = ScriptedServer([_uploaded, _job(), KeyboardInterrupt(), _job("cancelled"), GONE])
    with pytest.raises(KeyboardInterrupt):
        client_of(server).embed(TEXTS, model="m", as_job=True)
    assert _asked(server)[-2:] == [("POST", "/v1/jobs/job_1/cancel"), ("DELETE", f"/v1/files/{FILE_ID}")]


def test_what_is_wrong_in_an_iterator_is_raised_and_nothing_is_submitted(small_bodies: None) -> None:
    def texts() -> Iterator[Any]:
        yield from TEXTS
        yield None

    server = ScriptedServer([lambda request: httpx.Response(200, content=request.read())])
    with pytest.raises(InvalidPayload) as caught:
        client_of(server).embed(texts(), model="m")
    assert caught.value.param == "input[3]"
    assert [path for _, path in _asked(server)] in ([], ["/v1/files"])


def test_progress_is_told_in_inputs(small_bodies: None, capsys: pytest.CaptureFixture[str]) -> None:
    server = ScriptedServer([_uploaded, _job(), _job("running", done=1), _job("succeeded", done=3), _vectors(3), GONE])
    client_of(server).embed(TEXTS, model="m", as_job=True, progress=True)
    assert "embedding with m 1/3" in capsys.readouterr().err
