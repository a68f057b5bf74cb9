"""Results in every format on offer, and the refusals where a format cannot hold them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from typing import Any

import numpy as np
import pytest

from models_store.result_blobs import ResultBlobs
from ondol.sql.records import Completion
from tests.http.api_process import Member
from tests.http.peer_worker import PeerWorker, vector_of
from tests.http.test_bad_input import assert_refused

pytestmark = pytest.mark.integration

SUMMARY: dict[str, Any] = {
    "kind": "embedding",
    "truncated": [],
    "errors": {},
    "model": "tiny:1",
    "dtype": "float32",
    "engine": "torch",
    "encoding": "float",
}
ERROR = {"code": "context_length_exceeded", "message": "too long", "param": None}


def finished(member: Member, worker: PeerWorker, *, errors: dict[str, Any] | None = None, **fields: Any) -> str:
    job_id: str = member.submit(**fields)["id"]
    worker.run_one_message(errors=errors)
    return job_id


def result(member: Member, job_id: str, accept: str) -> Any:
    return member.http.get(f"/v1/jobs/{job_id}/result", headers={"accept": accept})


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_json_has_one_item_an_input_in_order(member: Member, worker: PeerWorker, encoding: str) -> None:
    job_id = finished(member, worker, input=["a b", "c"], options={"encoding": encoding})
    body = result(member, job_id, "*/*").json()
    assert {name: body[name] for name in ("object", "model", "dtype", "engine", "usage")} == {
        "object": "list",
        "model": "tiny:1",
        "dtype": "float32",
        "engine": "torch",
        "usage": {"tokens": 7},
    }
    assert [(item["index"], item["tokens"], item["truncated"]) for item in body["data"]] == [
        (0, 4, False),
        (1, 3, False),
    ]
    for item, text in zip(body["data"], ["a b", "c"], strict=True):
        output = item["output"]
        found = np.frombuffer(base64.b64decode(output), "<f4") if encoding == "base64" else np.float32(output)
        assert np.array_equal(found, vector_of(text))  # float32 survives its decimal form exactly


def test_item_errors_stand_in_their_place_and_npy_is_refused(member: Member, worker: PeerWorker) -> None:
    job_id = finished(member, worker, input=["a", "b", "c"], errors={"1": ERROR})
    items = [json.loads(line) for line in result(member, job_id, "application/x-ndjson").text.splitlines()]
    assert [item["index"] for item in items] == [0, 1, 2]
    assert items[1]["error"] == ERROR and "output" not in items[1] and "output" in items[2]
    assert_refused(result(member, job_id, "application/x-npy"), 406, "Accept")


def test_npy_is_the_array(member: Member, worker: PeerWorker) -> None:
    texts = [f"text {i}" for i in range(50)]
    answer = result(member, finished(member, worker, input=texts), "application/x-npy, application/json;q=0.5")
    assert answer.headers["content-type"] == "application/x-npy"
    array = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert array.dtype == np.float32 and np.array_equal(array, np.stack([vector_of(text) for text in texts]))


def test_a_large_result_is_streamed_from_its_blob_and_deleted_with_its_job(member: Member, worker: PeerWorker) -> None:
    job_id = member.submit(input=["a"] * 2000)["id"]
    [job] = worker.claim_next()
    rows = np.random.default_rng(3).normal(size=(2000, 256)).astype("<f4")
    data = rows.tobytes()
    blobs = ResultBlobs(member.api.store_url)
    path = blobs.write(job.id, job.attempt, data)
    summary = SUMMARY | {"shape": [2000, 256], "tokens": [3] * 2000, "truncated": [7], "num_tokens": 6000}
    done = Completion(
        job.id, job.attempt, summary, hashlib.sha256(data).hexdigest(), len(data), 6000, {}, blob_path=path
    )
    member.api.database.write(lambda uow: uow.attempts.complete([done]))
    body = result(member, job_id, "application/json").json()
    assert np.array_equal(np.array([item["output"] for item in body["data"]], dtype=np.float32), rows)
    assert [item["index"] for item in body["data"] if item["truncated"]] == [7]
    assert len(result(member, job_id, "application/x-ndjson").text.splitlines()) == 2000
    assert np.array_equal(np.load(io.BytesIO(result(member, job_id, "application/x-npy").content)), rows)
    assert member.http.delete(f"/v1/jobs/{job_id}").status_code == 200
    with pytest.raises(Exception, match="could not be read"):
        blobs.read(path)


def test_one_vector_a_token_is_ragged(member: Member, worker: PeerWorker) -> None:
    job_id = member.submit(input=["a", "b"], options={"pooling": "none"})["id"]
    [job] = worker.claim_next()
    rows = np.arange(40, dtype="<f4").reshape(5, 8)
    summary = SUMMARY | {"shape": None, "lengths": [2, 3], "tokens": [2, 3], "num_tokens": 5}
    data = rows.tobytes()
    done = Completion(job.id, job.attempt, summary, hashlib.sha256(data).hexdigest(), len(data), 5, {}, data=data)
    member.api.database.write(lambda uow: uow.attempts.complete([done]))
    outputs = [item["output"] for item in result(member, job_id, "application/json").json()["data"]]
    assert outputs == [rows[:2].tolist(), rows[2:].tolist()]
    assert_refused(result(member, job_id, "application/x-npy"), 406, "Accept")


def test_a_format_that_is_not_on_offer_is_406(member: Member, worker: PeerWorker) -> None:
    job_id = finished(member, worker)
    for accept in ("text/html", "application/xml", "application/json;q=0"):
        assert_refused(result(member, job_id, accept), 406, "Accept")


def test_a_job_that_has_not_ended_has_no_result(member: Member) -> None:
    answer = result(member, member.submit()["id"], "application/json")
    assert_refused(answer, 409, None)
    assert answer.headers["x-should-retry"] == "false"
