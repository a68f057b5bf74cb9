"""Through a real worker: a job that was cut gives what its inputs give in small jobs, whatever the way in and out."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from ondol.contract.kinds import JobKind
from tests.served import FloatArray, Served
from tests.tiny_models import make_tiny_model
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SENTENCE = "the fire burns below and the whole house stays warm while a queue remembers what a server forgets"
WORDS = SENTENCE.split()
TEXTS = [" ".join(WORDS[i % 5 : i % 5 + 3 + i % 11]) + f" {i}" for i in range(1_500)]
"""Over 16k estimated tokens together."""
TOLERANCE = 1e-5
"""The promise for a text in any company."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An Ondol that serves the model `tiny`."""
    place = tmp_path_factory.mktemp("bulk")
    ondol = Served(place)
    ondol.publish_all({"tiny": make_tiny_model(place / "tiny", seed=2)})
    yield ondol
    ondol.close()


@pytest.fixture(scope="module")
def expected(served: Served) -> FloatArray:
    """The vectors of `TEXTS`, from jobs that are too small to be cut."""
    bodies = [{"kind": "embedding", "model": "tiny", "input": list(texts)} for texts in batches(TEXTS, 100)]
    jobs = served.http.post("/v1/jobs/batch", json={"jobs": bodies}).raise_for_status().json()["data"]
    for job in jobs:
        assert served.wait(job["id"])["status"] == "succeeded"
    found = [result(served, job["id"], "application/x-npy").content for job in jobs]
    return np.concatenate([np.load(io.BytesIO(data), allow_pickle=False) for data in found])


def batches(texts: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


def result(served: Served, job_id: str, accept: str) -> httpx.Response:
    return served.http.get(f"/v1/jobs/{job_id}/result", headers={"accept": accept}).raise_for_status()


def progress_of(served: Served, job_id: str) -> list[dict[str, Any]]:
    events = served.http.get(f"/v1/jobs/{job_id}/events", params={"limit": 500}).json()["data"]
    return [event["data"] for event in events if event["type"] == "progress"]


def test_a_job_that_was_cut_equals_small_jobs(served: Served, expected: FloatArray) -> None:
    job_id = served.submit("tiny", TEXTS).json()["id"]
    job = served.wait(job_id)
    assert job["status"] == "succeeded" and job["progress"]["done"] == len(TEXTS)
    assert len(progress_of(served, job_id)) >= 2
    vectors = np.load(io.BytesIO(result(served, job_id, "application/x-npy").content), allow_pickle=False)
    assert vectors.shape == expected.shape and np.abs(vectors - expected).max() <= TOLERANCE
    body = result(served, job_id, "application/json").json()
    assert np.array_equal(np.array([item["output"] for item in body["data"]], dtype=np.float32), vectors)
    assert body["usage"] == job["usage"] == {"tokens": sum(item["tokens"] for item in body["data"])}
    table = pq.read_table(io.BytesIO(result(served, job_id, "application/vnd.apache.parquet").content))
    assert np.array_equal(np.array(table.column("embedding").to_pylist(), dtype=np.float32), vectors)


def test_a_file_gives_the_same_with_its_ids(served: Served, expected: FloatArray) -> None:
    lines = [{"key": f"row-{i}", "body": text} for i, text in enumerate(TEXTS)]
    lines[7]["body"] = ""
    content = "\n".join(json.dumps(line) for line in lines).encode()
    form = {"files": {"file": ("texts.jsonl", content)}, "data": {"purpose": "user_data"}}
    file_id = served.http.post("/v1/files", **form).raise_for_status().json()["id"]  # type: ignore[arg-type]  # by name
    body = {"kind": JobKind.EMBEDDING, "model": "tiny", "input_file": file_id}
    columns = {"text": "body", "id": "key"}
    job_id = served.http.post("/v1/jobs", json={**body, "input_columns": columns}).raise_for_status().json()["id"]
    job = served.wait(job_id)
    assert job["status"] == "succeeded", job["error"]
    assert job["progress"]["total"] == len(TEXTS)
    table = pq.read_table(io.BytesIO(result(served, job_id, "application/vnd.apache.parquet").content))
    assert table.column("id").to_pylist() == [line["key"] for line in lines]
    found = table.column("embedding").to_pylist()
    assert [i for i, vector in enumerate(found) if vector is None] == [7]
    kept = [i for i in range(len(TEXTS)) if i != 7]
    assert np.abs(np.array([found[i] for i in kept], dtype=np.float32) - expected[kept]).max() <= TOLERANCE
    items = [json.loads(line) for line in result(served, job_id, "application/x-ndjson").text.splitlines()]
    assert items[7]["id"] == "row-7" and items[7]["error"]["code"] == "invalid_payload"
    assert served.http.delete(f"/v1/files/{file_id}").status_code == 200


def test_waiting_clients_see_a_job_move_and_cancel_it(served: Served) -> None:
    job_id = served.submit("tiny", TEXTS * 20).json()["id"]

    def has_moved() -> bool:
        return bool(served.http.get(f"/v1/jobs/{job_id}").json()["progress"]["done"])

    wait_until(has_moved, within_s=120, what="a shard to be done")
    job = served.http.post(f"/v1/jobs/{job_id}/cancel").json()
    assert job["status"] == "cancelled"
    items = [json.loads(line) for line in result(served, job_id, "application/x-ndjson").text.splitlines()]
    done = [item for item in items if "output" in item]
    assert len(items) == 20 * len(TEXTS) and 0 < len(done) < len(items)
    assert {item["error"]["code"] for item in items if "error" in item} == {"cancelled"}
