"""What a batch's file asks for, what its lines become, and what its object says at each stage."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from openai.types import Batch

from api.batch_files import output_file_id
from api.batch_json import batch_json
from api.batch_lines import output_lines
from api.batch_request import read_batch_file
from api.result_parts import ResultPart
from api.vectors import StoredVectors
from ondol.contract.errors import InvalidPayload, ModelStoreError
from ondol.contract.files import check_file_id
from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState, Priority
from ondol.sql.records import JobRecord

pytestmark = pytest.mark.unit

JOB_ID = "job_" + "0" * 26


def _line(**body: Any) -> bytes:
    return json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body}).encode() + b"\n"


def test_the_first_line_that_can_be_run_says_what_is_run_and_all_are_counted() -> None:
    content = b"\xef\xbb\xbfno json\n\n" + _line(input="x") + _line(model="m", input=["x"], dimensions=3) + b"[]"
    found = read_batch_file(io.BytesIO(content))
    assert (found.num_lines, found.line) == (4, 4)
    assert found.body == {"model": "m", "dimensions": 3}


@pytest.mark.parametrize("content", [b"", b"\n \n", b"{}", b"[1]\n" * 150 + _line(model="m", input="x")])
def test_a_file_that_says_nothing_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidPayload) as caught:
        read_batch_file(io.BytesIO(content))
    assert caught.value.param == "input_file_id"


def _part(ids: list[str], errors: dict[str, Any] | None = None, **summary: Any) -> ResultPart:
    num = len(ids)
    about = {
        "shape": [num, 2],
        "tokens": [3] * num,
        "truncated": [],
        "errors": errors or {},
        "model": "m:1",
        "encoding": "float",
        **summary,
    }
    rows = np.arange(2 * num, dtype="<f4")
    return ResultPart(100, num, StoredVectors.read(about, rows.tobytes()), ids=ids)


def _lines(part: ResultPart) -> list[dict[str, Any]]:
    return [json.loads(line.content) | {"failed": line.has_failed} for line in output_lines(JOB_ID, part)]


def test_neighbours_of_one_id_are_one_line_with_the_tokens_of_all() -> None:
    first, several = _lines(_part(["a", "b", "b", "b"]))
    assert (first["custom_id"], several["custom_id"], several["failed"]) == ("a", "b", False)
    body = several["response"]["body"]
    assert [item["embedding"] for item in body["data"]] == [[2, 3], [4, 5], [6, 7]]
    assert body["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    assert first["id"] != several["id"] and first["response"]["request_id"] != several["response"]["request_id"]


def test_one_bad_input_fails_its_line_and_no_other() -> None:
    error = {"code": "context_length_exceeded", "message": "long"}
    lines = _lines(_part(["a", "b", "b", "c"], {"2": {**error, "param": "input[2]"}}))
    assert lines[1]["response"]["body"]["error"]["param"] == "input[1]", "of the line's own inputs"
    assert [(line["custom_id"], line["failed"]) for line in lines] == [("a", False), ("b", True), ("c", False)]
    assert lines[1]["error"] == error and lines[1]["response"]["body"]["error"]["message"] == "long"


def test_a_line_that_bears_its_neighbours_id_is_a_line_of_its_own() -> None:
    error = {"code": "duplicate_custom_id", "message": "again"}
    lines = _lines(_part(["a", "a", "a", "a"], {"2": error, "3": error}))
    assert [line["failed"] for line in lines] == [False, True, True]
    assert len(lines[0]["response"]["body"]["data"]) == 2


def test_a_shard_that_failed_is_an_error_of_each_of_its_lines() -> None:
    error = {"code": "worker_lost", "message": "lost", "param": None}
    lines = _lines(ResultPart(0, 3, None, error, ["a", "a", "b"]))
    assert [(line["custom_id"], line["error"]["code"]) for line in lines] == [
        ("a", "worker_lost"),
        ("b", "worker_lost"),
    ]
    with pytest.raises(ModelStoreError, match="custom_ids"):
        list(output_lines(JOB_ID, ResultPart(0, 3, None, error, None)))


def _job(state: JobState, **more: Any) -> JobRecord:
    ended = 1_790_000_100.75 if state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED) else None
    batch = {"endpoint": "/v1/embeddings", "completion_window": "24h", "num_lines": 10}
    job = JobRecord(
        id=JOB_ID,
        project_id="project",
        kind=JobKind.EMBEDDING,
        state=state,
        priority=Priority.BULK,
        model_ref="m:1",
        metadata={},
        num_inputs=30,
        num_done=30,
        created_at=1_790_000_000.5,
        run_after=1_790_000_000.5,
        deadline_at=None,
        started_at=1_790_000_001.0,
        finished_at=ended,
        attempt=1,
        worker=None,
        tokens=123,
        timings=None,
        error=None,
        event_seq=3,
        is_sharded=True,
        input_file_id="file_" + "0" * 26,
        batch=batch,
    )
    return replace(job, **more)


WRITTEN = {
    "files_of": 1_790_000_100.75,
    "written_at": 1_790_000_105.0,
    "output_file_id": "file_out",
    "counts": {"total": 10, "completed": 9, "failed": 1},
}


@pytest.mark.parametrize(
    ("job", "status", "completed"),
    [
        (_job(JobState.QUEUED, is_sharded=False, num_inputs=0, num_done=0, started_at=None), "validating", 0),
        (_job(JobState.RUNNING, is_sharded=False, num_inputs=0, num_done=0), "validating", 0),
        (_job(JobState.RUNNING, num_done=16), "in_progress", 5),
        (_job(JobState.SUCCEEDED), "finalizing", 10),
        (_job(JobState.SUCCEEDED, batch=WRITTEN), "completed", 9),
        (_job(JobState.SUCCEEDED, batch=WRITTEN | {"files_of": 1.0}), "finalizing", 0),
        (_job(JobState.SUCCEEDED, batch=WRITTEN | {"error": {"code": "checksum_mismatch"}}), "failed", 9),
        (_job(JobState.FAILED), "finalizing", 10),
        (_job(JobState.FAILED, is_sharded=False, num_done=0, error={"code": "invalid_file"}), "failed", 0),
        (_job(JobState.CANCELLED), "cancelling", 10),
        (_job(JobState.CANCELLED, batch=WRITTEN), "cancelled", 9),
        (_job(JobState.CANCELLED, is_sharded=False, num_inputs=0, num_done=0), "cancelled", 0),
    ],
)
def test_each_stage_has_its_status_and_counts_lines(job: JobRecord, status: str, completed: int) -> None:
    shown = batch_json(job)
    batch = Batch.model_validate(shown, strict=True) if "endpoint" in (job.batch or {}) else None
    assert (shown["status"], shown["request_counts"]["completed"]) == (status, completed)
    assert batch is None or batch.id == JOB_ID
    if status in ("finalizing", "cancelling"):
        assert shown["output_file_id"] is None
    stamps = {"completed": "completed_at", "failed": "failed_at", "cancelled": "cancelled_at"}
    assert all((shown[stamp] is not None) is (status == name) for name, stamp in stamps.items())


def test_ids_of_output_files_follow_from_the_job_and_its_end() -> None:
    job = _job(JobState.SUCCEEDED)
    ids = [output_file_id(job, is_errors=is_errors) for is_errors in (False, True)]
    assert ids == [output_file_id(job, is_errors=is_errors) for is_errors in (False, True)]
    again = output_file_id(replace(job, finished_at=1_790_000_200.0), is_errors=False)
    assert len({*ids, again}) == 3 and again > max(ids)
    for file_id in (*ids, again):
        check_file_id(file_id)
