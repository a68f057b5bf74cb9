"""Jobs on files, by real processes that are killed: complete, in order, and only what was lost is run again."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ondol.sql.records import ResultRecord
from tests.bulk.worker.bulk_cluster import SETTINGS, BulkCluster
from tests.bulk.worker.conftest import json_lines
from tests.cluster import running_cluster
from tests.servers import RedisServer
from tests.waiting import wait_until
from workers.outcomes import MAX_INLINE_SHARD_BYTES

pytestmark = [pytest.mark.integration, pytest.mark.timeout(280)]

TEXTS = [f"the warm floor of room number {i}" for i in range(1_500)]
NUM_OF_SMALL = 30
"""Texts of a job that is not cut."""
SLOW = ["--delay-us-per-token", "150", "--dims", "512"]
STEP_LIMIT_S = 60


@pytest.fixture
def bulk(tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path) -> Iterator[BulkCluster]:
    """An api and a reconciler with a model; no worker yet."""
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=SETTINGS) as cluster:
        cluster.publish(tiny_version, "tiny")
        cluster.start_api()
        cluster.start_reconciler()
        bulk = BulkCluster(cluster)
        yield bulk
        bulk.close()


def csv_file(texts: list[str]) -> bytes:
    return ("text\n" + "".join(f"{text}\n" for text in texts)).encode()


def parquet_file(texts: list[str]) -> bytes:
    buffer = BytesIO()
    pq.write_table(pa.table({"key": list(range(len(texts))), "text": texts}), buffer)
    return buffer.getvalue()


def results_of(bulk: BulkCluster, job_id: str) -> list[ResultRecord]:
    return [shard.result for shard in bulk.results(job_id) if shard.result is not None]


def test_a_killed_worker_costs_no_more_than_the_shards_it_ran(bulk: BulkCluster) -> None:
    worker = bulk.cluster.start_worker(0, faults=SLOW)
    lines = json_lines(*({"id": f"room-{i}", "text": text} for i, text in enumerate(TEXTS))).encode()
    by_csv = bulk.submit_file("texts.csv", csv_file(TEXTS))
    by_lines = bulk.submit_file("texts.jsonl", lines)
    by_parquet = bulk.submit_file("texts.parquet", parquet_file(TEXTS), input_columns={"text": "text", "id": "key"})
    ids = [by_csv, by_lines, by_parquet]

    def num_done() -> int:
        shards = [bulk.shards(job_id) for job_id in ids]
        return sum(one.state == "succeeded" for found in shards for one in found) if all(shards) else 0

    wait_until(lambda: num_done() >= 3, within_s=STEP_LIMIT_S, what="all jobs to be planned and three shards done")
    bulk.cluster.kill(worker)
    at_death = [one for job_id in ids for one in bulk.shards(job_id)]
    lost = {one.id for one in at_death if one.state == "running"}
    assert any(one.state == "queued" for one in at_death), "it was killed in the middle"
    bulk.cluster.restart(worker)

    for job_id in ids:
        job = bulk.wait(job_id)
        assert (job["status"], job["attempt"]) == ("succeeded", 1), job["error"]
        assert bulk.outcomes(job_id) == ["planned"]
    shards = [one for job_id in ids for one in bulk.shards(job_id)]
    assert {one.id for one in shards if one.attempt > 1} == lost
    assert {one.attempt for one in shards} <= {1, 2}

    expected = bulk.vectors_of_small_jobs(TEXTS, NUM_OF_SMALL)
    for job_id in ids:
        np.testing.assert_allclose(bulk.vectors(job_id), expected, atol=1e-5)
    for job_id, wanted in ((by_lines, [f"room-{i}" for i in range(len(TEXTS))]), (by_parquet, list(range(len(TEXTS))))):
        assert [one for result in results_of(bulk, job_id) for one in result.summary["ids"]] == wanted
    stands = {(one.size_bytes > MAX_INLINE_SHARD_BYTES, one.blob_path is not None) for one in results_of(bulk, by_csv)}
    assert (True, True) in stands
    assert not {(True, False), (False, True)} & stands, "large results, and only those, stand in the store"


def test_a_plan_whose_worker_was_killed_is_made_again_and_can_be_cancelled(bulk: BulkCluster) -> None:
    worker = bulk.cluster.start_worker(0, faults=SLOW)
    texts = TEXTS * 150
    job_id = bulk.submit_file("texts.csv", csv_file(texts))
    [child] = wait_until(lambda: bulk.planning_children(worker), within_s=STEP_LIMIT_S, what="the planning child")
    bulk.cluster.kill(worker)
    wait_until(lambda: not child.is_running(), within_s=STEP_LIMIT_S, what="the child to end with its worker")
    assert bulk.shards(job_id) == []
    bulk.cluster.restart(worker)

    def some_are_done() -> bool:
        return any(one.state == "succeeded" for one in bulk.shards(job_id))

    wait_until(some_are_done, within_s=STEP_LIMIT_S, what="the first shard to be done")
    assert bulk.outcomes(job_id) == ["lost", "planned"]
    answer = bulk.http.post(f"/v1/jobs/{job_id}/cancel")
    assert answer.status_code == 200, answer.text
    assert bulk.wait(job_id)["status"] == "cancelled"
    shards = bulk.shards(job_id)
    assert {one.state for one in shards} <= {"succeeded", "cancelled"}
    done = next(shard for shard in bulk.results(job_id) if shard.result is not None)
    some = texts[done.first_input : done.first_input + NUM_OF_SMALL]
    found = bulk.vectors_of_shard(done)[:NUM_OF_SMALL]
    np.testing.assert_allclose(found, bulk.vectors_of_small_jobs(some, NUM_OF_SMALL), atol=1e-5)
    assert bulk.shards(job_id) == shards, "nothing of a cancelled job is run any more"
    stored = bulk.cluster.folder / "data" / "store" / "inputs" / job_id
    assert [path.name for path in stored.iterdir()] == ["2.bin"]


def test_a_plan_ends_with_its_jobs_cancel_and_goes_back_with_its_worker(bulk: BulkCluster) -> None:
    worker = bulk.cluster.start_worker(0, faults=SLOW)
    content = csv_file(TEXTS * 500)
    cancelled = bulk.submit_file("texts.csv", content)
    [child] = wait_until(lambda: bulk.planning_children(worker), within_s=STEP_LIMIT_S, what="the planning child")
    assert bulk.http.post(f"/v1/jobs/{cancelled}/cancel").status_code == 200
    wait_until(lambda: not child.is_running(), within_s=STEP_LIMIT_S, what="the child to end with its job")
    assert bulk.job(cancelled)["status"] == "cancelled"
    assert bulk.shards(cancelled) == []

    handed_back = bulk.submit_file("texts.csv", content)
    [child] = wait_until(lambda: bulk.planning_children(worker), within_s=STEP_LIMIT_S, what="the planning child")
    assert bulk.cluster.terminate(worker) == 0
    assert not child.is_running()
    assert bulk.outcomes(handed_back) == ["handed_back"]
    assert bulk.job(handed_back)["status"] == "queued"


def test_a_row_without_a_text_is_an_item_error_and_a_broken_file_an_error_of_the_job(bulk: BulkCluster) -> None:
    bulk.cluster.start_worker(0, faults=[])
    rows = [{"id": i, "text": text if i % 100 else ""} for i, text in enumerate(TEXTS[:500])]
    some = bulk.submit_file("texts.jsonl", json_lines(*rows).encode())
    broken = bulk.submit_file("texts.csv", b"text,id\na,1\nb\n")
    nothing = bulk.submit_file("empty.csv", b"text\n")

    job = bulk.wait(some)
    assert job["status"] == "succeeded", job["error"]
    shards = bulk.results(some)
    assert len(shards) > 1
    errors = {
        shard.first_input + int(place): (error["code"], error["message"])
        for shard in shards
        if shard.result is not None
        for place, error in shard.result.summary["errors"].items()
    }
    assert errors == {i: ("invalid_payload", f"row {i + 1}: column 'text' is empty") for i in range(0, len(rows), 100)}
    vectors = bulk.vectors(some)
    assert [i for i, vector in enumerate(vectors) if not vector.any()] == sorted(errors)
    tokens = [count for result in results_of(bulk, some) for count in result.summary["tokens"]]
    assert [i for i, count in enumerate(tokens) if count == 0] == sorted(errors)

    found = bulk.wait(broken)
    assert (found["status"], found["error"]["code"], found["error"]["param"]) == (
        "failed",
        "invalid_file",
        "input_file",
    )
    assert found["error"]["message"].startswith("texts.csv, row 2 (line 3): too few cells")
    assert bulk.wait(nothing)["error"]["message"] == "empty.csv has no rows; add some"
    assert bulk.outcomes(broken) == ["failed"]
