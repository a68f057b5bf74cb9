"""`embed` chooses between call and jobs, keeps the order, and reports failed inputs with the rest of the result."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from ondol import ItemErrors, JobFailed, OndolError
from ondol.client.bulk_flow import BulkRequest
from ondol.client.embed_flow import embed_request
from tests.client.scripted_server import ScriptedServer, client_of, error_json, job_json

pytestmark = pytest.mark.unit


def _body(request: httpx.Request) -> Any:
    return json.loads(request.content)


def _call_answer(request: httpx.Request) -> httpx.Response:
    """One vector [length, 1] a text, in reverse order, in base64."""
    vectors = [np.array([len(text), 1], dtype="<f4") for text in _body(request)["input"]]
    data = [{"index": i, "embedding": base64.b64encode(v.tobytes()).decode()} for i, v in enumerate(vectors)]
    return httpx.Response(200, json={"object": "list", "data": data[::-1], "model": "m:1"})


def _npy(rows: list[list[float]]) -> httpx.Response:
    buffer = io.BytesIO()
    np.save(buffer, np.array(rows, dtype=np.float32))
    return httpx.Response(200, content=buffer.getvalue())


def _submitted(job_id: str) -> httpx.Response:
    return httpx.Response(202, json=job_json(job_id))


def _ended(job_id: str, status: str = "succeeded", **more: Any) -> httpx.Response:
    return httpx.Response(200, json=job_json(job_id, status, **more))


def test_a_few_texts_are_one_call_that_cuts_long_texts() -> None:
    server = ScriptedServer([_call_answer])
    vectors = client_of(server).embed(["a", "abc"], model="m", prompt_name="query", dimensions=None)
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[1, 1], [3, 1]]
    sent = _body(server.requests[0])
    assert (sent["truncate"], sent["encoding_format"], sent["prompt_name"]) == ("right", "base64", "query")
    assert "dimensions" not in sent


def test_one_text_gives_one_vector() -> None:
    assert client_of(ScriptedServer([_call_answer])).embed("abc", model="m").shape == (2,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: embed_request(["a"] * 65, "m", {}),
        lambda: embed_request("a" * 70_000, "m", {}),
        lambda: embed_request("a", "m", {"poling": "mean"}),
        lambda: embed_request("a", "m", {}, as_job=True),
    ],
)
def test_what_a_call_cannot_do_becomes_a_job(make: Callable[[], BulkRequest]) -> None:
    assert not make().is_call()


def test_any_number_of_texts_is_one_job() -> None:
    server = ScriptedServer([_submitted("job_1"), _ended("job_1"), _npy([[1]] * 5000)])
    vectors = client_of(server).embed(["a"] * 5000, model="m")
    assert vectors.shape == (5000, 1) and vectors.dtype == np.float32
    assert _body(server.requests[0])["input"] == ["a"] * 5000
    assert server.requests[-1].headers["accept"] == "application/x-npy"


def _one_bad_item() -> list[Any]:
    vector = base64.b64encode(np.array([1, 2], dtype="<f4").tobytes()).decode()
    items = [
        {"index": 0, "output": vector},
        {"index": 1, "error": {"code": "context_length_exceeded", "message": "long"}},
    ]
    result = httpx.Response(200, content="\n".join(map(json.dumps, items)).encode())
    return [_submitted("job_1"), _ended("job_1"), httpx.Response(406, json=error_json("not_acceptable")), result]


def test_failed_inputs_raise_with_the_partial_result() -> None:
    with pytest.raises(ItemErrors) as caught:
        client_of(ScriptedServer(_one_bad_item())).embed(["a", "b"], model="m", as_job=True)
    assert caught.value.errors[1].code == "context_length_exceeded"
    assert caught.value.partial[0].tolist() == [1, 2]
    assert np.isnan(caught.value.partial[1]).all()


def test_failed_inputs_come_back_when_asked_for() -> None:
    outcome = client_of(ScriptedServer(_one_bad_item())).embed(["a", "b"], model="m", as_job=True, errors="return")
    assert list(outcome.errors) == [1]
    assert outcome.vectors.shape == (2, 2)


def test_a_call_refused_for_one_input_goes_as_a_job_so_that_the_others_succeed() -> None:
    refused = httpx.Response(400, json=error_json("context_length_exceeded", "long", "input[1]"))
    server = ScriptedServer([refused, *_one_bad_item()])
    outcome = client_of(server).embed(["a", "b"], model="m", truncate="error", errors="return")
    assert list(outcome.errors) == [1]
    assert _body(server.requests[1])["options"] == {"truncate": "error", "encoding": "base64"}


def test_a_job_that_failed_raises_its_error() -> None:
    failed = _ended("job_1", "failed", error={"code": "worker_lost", "message": "lost"})
    conflict = httpx.Response(409, json=error_json("illegal_transition"), headers={"x-should-retry": "false"})
    with pytest.raises(JobFailed, match="worker_lost"):
        client_of(ScriptedServer([_submitted("job_1"), failed, conflict])).embed(["a", "b"], model="m", as_job=True)


def test_ctrl_c_cancels_what_was_submitted() -> None:
    server = ScriptedServer([_submitted("job_1"), KeyboardInterrupt(), _ended("job_1", "cancelled")])
    with pytest.raises(KeyboardInterrupt):
        client_of(server).embed(["a"], model="m", as_job=True)
    assert server.requests[-1].url.path == "/v1/jobs/job_1/cancel"


@pytest.mark.parametrize("texts", [[], [1], ["a", None]])
def test_what_is_no_text_is_refused_before_anything_is_sent(texts: Any) -> None:
    with pytest.raises(OndolError):
        client_of(ScriptedServer([])).embed(texts, model="m")
