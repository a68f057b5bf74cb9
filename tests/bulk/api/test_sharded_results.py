"""The result of a sharded job: every format in input order, what a cancelled one had done, damage that shows."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from models_store.result_blobs import ResultBlobs
from ondol.sql.records import Completion
from tests.bulk.api.shard_runner import ShardRunner
from tests.http.api_process import MOODS, Member
from tests.http.peer_worker import scores_of, vector_of
from tests.http.test_bad_input import assert_refused

pytestmark = pytest.mark.integration

TEXTS = [f"a text about the number {i} that is long enough" for i in range(100)]
"""16 estimated tokens each, so 16 a shard: seven shards."""
NUM_SHARDS = 7
ERROR = {"code": "context_length_exceeded", "message": "too long", "param": None}
JSON, NDJSON = "application/json", "application/x-ndjson"
NPY, PARQUET = "application/x-npy", "application/vnd.apache.parquet"


def result(member: Member, job_id: str, accept: str, **params: str) -> httpx.Response:
    return member.http.get(f"/v1/jobs/{job_id}/result", headers={"accept": accept}, params=params)


def items(member: Member, job_id: str, **params: str) -> list[dict[str, Any]]:
    found = result(member, job_id, NDJSON, **params)
    assert found.status_code == 200, found.text
    return [json.loads(line) for line in found.text.splitlines()]


def job_of(member: Member, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = member.http.get(f"/v1/jobs/{job_id}").json()
    return job


def codes(found: list[dict[str, Any]]) -> list[str | None]:
    return [item["error"]["code"] if "error" in item else None for item in found]


def test_progress_is_told_and_the_result_comes_in_every_format(member: Member, runner: ShardRunner) -> None:
    job_id = member.submit(input=TEXTS)["id"]
    assert job_of(member, job_id)["progress"] == {
        "done": 0,
        "total": 100,
        "unit": "inputs",
        "rate": None,
        "eta_s": None,
    }
    assert len(runner.run(2)) == 2
    job = job_of(member, job_id)
    assert job["status"] == "running" and job["progress"]["done"] == 32
    assert job["progress"]["rate"] > 0 and job["progress"]["eta_s"] > 0
    assert len(runner.run()) == NUM_SHARDS - 2
    job = job_of(member, job_id)
    assert job["status"] == "succeeded" and job["usage"]["tokens"] == 12 * 100
    assert job["progress"]["done"] == 100 and job["progress"]["eta_s"] is None

    expected = np.stack([vector_of(text) for text in TEXTS])
    body = result(member, job_id, JSON).json()
    assert body["model"] == "tiny:1" and body["usage"] == {"tokens": 1200}
    assert [item["index"] for item in body["data"]] == list(range(100))
    assert np.array_equal(np.array([item["output"] for item in body["data"]], dtype=np.float32), expected)
    assert items(member, job_id) == body["data"]
    npy = result(member, job_id, NPY)
    assert int(npy.headers["content-length"]) == len(npy.content)
    assert np.array_equal(np.load(io.BytesIO(npy.content), allow_pickle=False), expected)
    table = pq.ParquetFile(io.BytesIO(result(member, job_id, PARQUET).content))
    assert table.num_row_groups == NUM_SHARDS
    assert np.array_equal(np.array(table.read().column("embedding").to_pylist(), dtype=np.float32), expected)


def test_events_of_shards_are_progress_of_their_job(member: Member, runner: ShardRunner) -> None:
    job_id = member.submit(input=TEXTS)["id"]
    runner.run()
    with member.http.stream("GET", f"/v1/jobs/{job_id}/events", headers={"accept": "text/event-stream"}) as stream:
        lines = [json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data: ")]
    assert [event["seq"] for event in lines] == list(range(1, len(lines) + 1))
    progress = [event["data"] for event in lines if event["type"] == "progress"]
    assert [data["done"] for data in progress][-1] == 100
    assert all(data["total"] == 100 and data["unit"] == "inputs" for data in progress)


def test_item_errors_stand_at_their_place_in_the_job(member: Member, runner: ShardRunner) -> None:
    job_id = member.submit(input=TEXTS)["id"]
    runner.run(1)
    runner.run(errors={"3": {**ERROR, "param": "input[3]"}})
    assert items(member, job_id)[19]["error"] == {**ERROR, "param": "input[19]"}
    assert [i for i, code in enumerate(codes(items(member, job_id))) if code] == [19]
    assert_refused(result(member, job_id, NPY), 406, "Accept")
    table = pq.read_table(io.BytesIO(result(member, job_id, PARQUET).content))
    assert table.column("error").to_pylist()[19] == {**ERROR, "param": "input[19]"}
    assert table.column("embedding").null_count == 1


def test_what_a_cancelled_job_had_done_can_be_had(member: Member, runner: ShardRunner) -> None:
    job_id = member.submit(input=TEXTS)["id"]
    runner.run(2)
    job = member.http.post(f"/v1/jobs/{job_id}/cancel").json()
    assert job["status"] == "cancelled" and job["result_url"] == f"/v1/jobs/{job_id}/result"
    found = items(member, job_id)
    assert codes(found) == [None] * 32 + ["cancelled"] * 68
    assert [item["index"] for item in found] == list(range(100))
    assert runner.run() == []
    table = pq.read_table(io.BytesIO(result(member, job_id, PARQUET).content))
    assert table.column("embedding").null_count == 68
    assert_refused(result(member, job_id, NPY), 406, "Accept")


def test_a_job_cancelled_before_it_began_has_errors_alone(member: Member) -> None:
    job_id = member.submit(input=TEXTS)["id"]
    member.http.post(f"/v1/jobs/{job_id}/cancel")
    assert codes(items(member, job_id)) == ["cancelled"] * 100
    table = pq.read_table(io.BytesIO(result(member, job_id, PARQUET).content))
    assert table.column("embedding").null_count == 100


def test_a_shard_that_failed_leaves_its_error_with_its_inputs(member: Member, runner: ShardRunner) -> None:
    job_id = member.submit(input=TEXTS)["id"]
    shard = runner.claim()
    assert shard is not None
    runner.fail(shard, {"code": "worker_lost", "message": "lost", "param": None})
    runner.run()
    assert job_of(member, job_id)["status"] == "succeeded"
    assert codes(items(member, job_id)) == ["worker_lost"] * 16 + [None] * 84
    table = pq.read_table(io.BytesIO(result(member, job_id, PARQUET).content))  # the first shard shows no shape
    assert table.column("embedding").null_count == 16
    assert_refused(result(member, job_id, NPY), 406, "Accept")


def test_a_job_that_failed_tells_why_input_by_input_and_can_be_retried(member: Member, runner: ShardRunner) -> None:
    job_id = member.submit(input=TEXTS)["id"]
    while (shard := runner.claim()) is not None:
        runner.fail(shard, {"code": "device_error", "message": f"broken at {shard.id[-1]}", "param": None})
    job = job_of(member, job_id)
    assert job["status"] == "failed" and job["error"]["code"] == "device_error" and job["result_url"]
    found = items(member, job_id)
    assert codes(found) == ["device_error"] * 100 and found[99]["error"]["message"] == "broken at 6"
    assert member.http.post(f"/v1/jobs/{job_id}/retry").json()["result_url"] is None
    assert len(runner.run()) == NUM_SHARDS
    assert job_of(member, job_id)["status"] == "succeeded"
    assert codes(items(member, job_id)) == [None] * 100


def test_a_running_job_gives_what_is_done_when_asked_for_it(member: Member, runner: ShardRunner) -> None:
    job_id = member.submit(input=TEXTS)["id"]
    runner.run(1)
    assert_refused(result(member, job_id, JSON), 409, None)
    assert codes(items(member, job_id, partial="true")) == [None] * 16 + ["not_done"] * 84
    small = member.submit()["id"]
    assert_refused(result(member, small, JSON, partial="true"), 409, None)


def test_a_shard_is_nobodys_job(member: Member, runner: ShardRunner) -> None:
    job_id = member.submit(input=TEXTS)["id"]
    [shard] = runner.run(1)
    assert shard.id.startswith(f"{job_id}.")
    assert member.http.get(f"/v1/jobs/{shard.id}").status_code == 404
    assert [job["id"] for job in member.http.get("/v1/jobs").json()["data"]] == [job_id]


def test_jobs_of_a_batch_are_cut_too(member: Member, runner: ShardRunner) -> None:
    body = {"jobs": [{"kind": "embedding", "model": "tiny", "input": value} for value in (TEXTS, ["one"])]}
    large, small = member.http.post("/v1/jobs/batch", json=body).json()["data"]
    assert [shard.id.partition(".")[0] for shard in runner.run()].count(large["id"]) == NUM_SHARDS
    assert len(items(member, large["id"])) == 100 and len(items(member, small["id"])) == 1
    table = pq.read_table(io.BytesIO(result(member, small["id"], PARQUET).content))  # a job without shards has it too
    assert np.array_equal(np.array(table.column("embedding").to_pylist(), dtype=np.float32), [vector_of("one")])


def test_label_scores_of_shards_are_lists(member: Member, runner: ShardRunner) -> None:
    member.api.publish(member.project_id, "moods", MOODS)
    job_id = member.submit(kind="text-classification", model="moods", input=TEXTS)["id"]
    runner.run()
    table = pq.read_table(io.BytesIO(result(member, job_id, PARQUET).content))
    expected = [sorted(map(float, scores_of(text)), reverse=True) for text in TEXTS]
    assert table.column("scores").to_pylist() == expected
    assert_refused(result(member, job_id, NPY), 406, "Accept")


def test_a_damaged_first_shard_is_told_before_the_first_byte(member: Member, runner: ShardRunner) -> None:
    job_id = member.submit(input=TEXTS)["id"]
    damage(member, runner, nth=0)
    answer = result(member, job_id, JSON)
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "checksum_mismatch"


@pytest.mark.parametrize("accept", [JSON, NPY, PARQUET])
def test_a_shard_damaged_behind_the_first_breaks_the_transfer_off(
    member: Member, runner: ShardRunner, accept: str
) -> None:
    job_id = member.submit(input=TEXTS)["id"]
    damage(member, runner, nth=3)
    with pytest.raises(httpx.RemoteProtocolError):
        result(member, job_id, accept)


def test_deleting_the_job_deletes_the_blobs_of_its_shards(member: Member, runner: ShardRunner) -> None:
    job_id = member.submit(input=TEXTS)["id"]
    blob = damage(member, runner, nth=2)
    assert blob.exists()
    assert member.http.delete(f"/v1/jobs/{job_id}").status_code == 200
    assert not blob.exists()
    assert member.count_rows() == 0


def damage(member: Member, runner: ShardRunner, *, nth: int) -> Path:
    """Run all shards, the `nth` with its result in a blob that is damaged afterwards; the blob."""
    runner.run(nth)
    shard = runner.claim()
    assert shard is not None
    rows = np.zeros((shard.num_inputs, 8), "<f4")
    path = ResultBlobs(member.api.store_url).write(shard.id, shard.attempt, rows.tobytes())
    summary = {"kind": "embedding", "shape": list(rows.shape), "tokens": [3] * len(rows), "truncated": [], "errors": {}}
    about = {"model": "tiny:1", "dtype": "float32", "engine": "torch", "encoding": "float", "num_tokens": 1}
    done = Completion(
        shard.id, shard.attempt, summary | about, "0" * 64, rows.nbytes, tokens=1, timings={}, blob_path=path
    )
    member.api.database.write(lambda uow: uow.attempts.complete([done]))
    runner.run()
    return Path(member.api.store_url.removeprefix("file://")) / "results" / path
