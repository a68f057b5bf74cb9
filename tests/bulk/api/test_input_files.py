"""Jobs whose inputs are the rows of an uploaded file: what is accepted, what is refused, and whose ids come back."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from ondol.contract.ids import new_id
from ondol.sql.backlog import count_backlog
from ondol.sql.tables import files
from tests.bulk.api.shard_runner import ShardRunner
from tests.http.api_process import MOODS, SPEC, ApiProcess, Member, job_body
from tests.http.test_bad_input import assert_refused

pytestmark = pytest.mark.integration

CSV = b"id,text\n" + b"".join(b"row-%d,some text of number %d\n" % (i, i) for i in range(50))
PARTS: list[tuple[list[str], list[Any]]] = [
    (["one", "two"], ["a", 2]),
    (["three"], ["c"]),
    (["four", "five"], [None, "e"]),
]


def upload(member: Member, *, purpose: str = "user_data") -> str:
    answer = member.http.post("/v1/files", files={"file": ("texts.csv", CSV)}, data={"purpose": purpose})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def submit(member: Member, file_id: str, **fields: Any) -> httpx.Response:
    return member.http.post("/v1/jobs", json=job_body(**{"input": ..., "input_file": file_id, **fields}))


@pytest.mark.parametrize("purpose", ["user_data", "batch", "fine-tune"])
def test_a_file_of_any_purpose_is_taken_and_its_job_goes_as_bulk(member: Member, purpose: str) -> None:
    file_id = upload(member, purpose=purpose)
    answer = submit(member, file_id)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["input_file"], job["priority"], job["progress"]["total"]) == (file_id, "bulk", 0)
    shown = member.http.get(f"/v1/jobs/{job['id']}").json()
    assert shown["input_file"] == file_id and shown["queue"]["position"] >= 1
    assert submit(member, file_id, priority="interactive").json()["priority"] == "interactive"
    assert member.submit()["priority"] == "normal" and member.submit()["input_file"] is None


def test_what_waits_is_counted_by_the_size_of_the_file(member: Member, runner: ShardRunner) -> None:
    submit(member, upload(member))
    counted = member.api.database.read(lambda uow: count_backlog(uow, window_s=1.0, since=None))
    [waiting] = [amount for (project_id, _), amount in counted.queued.items() if project_id == member.project_id]
    assert waiting.num_tokens == int(len(CSV) * SPEC.tokens_per_byte)


def test_a_file_that_is_not_there_is_the_requests_mistake(member: Member, bulk_api: ApiProcess) -> None:
    mine, other = upload(member), bulk_api.member()
    assert_refused(submit(other, mine), 400, "input_file")
    other.close()
    assert_refused(submit(member, new_id("file")), 400, "input_file")
    assert_refused(submit(member, "../../etc/passwd"), 400, "input_file")
    expire = sa.update(files).where(files.c.id == mine).values(expires_at=1.0)
    bulk_api.database.write(lambda uow: uow.conn.execute(expire))
    refused = submit(member, mine)
    assert_refused(refused, 400, "input_file")
    assert refused.json()["error"]["code"] == "file_not_found"


def test_one_missing_file_spoils_no_other_job_of_a_batch(member: Member) -> None:
    bodies = [job_body(input=..., input_file=one) for one in (upload(member), new_id("file"))]
    good, bad = member.http.post("/v1/jobs/batch", json={"jobs": [*bodies]}).json()["data"]
    assert good["status"] == "queued"
    assert (bad["index"], bad["error"]["param"]) == (1, "input_file")


def test_options_are_checked_before_anybody_reads_the_file(member: Member) -> None:
    file_id = upload(member)
    assert_refused(submit(member, file_id, options={"pooling": "pooler"}), 400, "options.pooling")
    assert_refused(submit(member, file_id, options={"dimensions": 99}), 400, "options.dimensions")
    assert_refused(submit(member, file_id, kind="text-classification"), 400, "model")
    assert_refused(submit(member, file_id, input="a"), 400, "input_file")
    member.api.publish(member.project_id, "moods", MOODS)
    pairs = {"text": "text", "text_pair": "id"}
    answer = submit(member, file_id, kind="text-classification", model="moods", input_columns=pairs)
    assert answer.status_code == 202
    payload = member.api.database.read(lambda uow: uow.jobs.payload(answer.json()["id"]))
    assert json.loads(payload) == {"columns": {**pairs, "id": None}}


def test_the_file_cannot_go_while_its_job_waits_to_be_planned(member: Member) -> None:
    file_id = upload(member)
    job_id = submit(member, file_id).json()["id"]
    assert_refused(member.http.delete(f"/v1/files/{file_id}"), 409, "file_id")
    member.http.post(f"/v1/jobs/{job_id}/cancel")
    assert member.http.delete(f"/v1/files/{file_id}").status_code == 200


def test_a_job_that_is_not_planned_yet_has_nothing_to_show(member: Member) -> None:
    job_id = submit(member, upload(member)).json()["id"]
    assert_refused(member.http.get(f"/v1/jobs/{job_id}/result", params={"partial": "true"}), 409, None)
    cancelled = member.http.post(f"/v1/jobs/{job_id}/cancel").json()
    assert cancelled["result_url"] is None
    assert_refused(member.http.get(f"/v1/jobs/{job_id}/result"), 409, None)


def test_ids_come_back_also_with_inputs_that_have_no_result(member: Member, runner: ShardRunner) -> None:
    job_id = submit(member, upload(member)).json()["id"]
    planned = runner.claim()
    assert planned is not None and planned.id == job_id and planned.input_file_id is not None
    runner.plan(planned, PARTS)
    failed = runner.claim()
    assert failed is not None
    runner.fail(failed, {"code": "worker_lost", "message": "lost", "param": None})
    runner.run(1)
    member.http.post(f"/v1/jobs/{job_id}/cancel")
    answer = member.http.get(f"/v1/jobs/{job_id}/result", headers={"accept": "application/x-ndjson"})
    found = [json.loads(line) for line in answer.text.splitlines()]
    assert [item["id"] for item in found] == ["a", 2, "c", None, "e"]
    errors = [item.get("error", {}).get("code") for item in found]
    assert errors == ["worker_lost", "worker_lost", None, "cancelled", "cancelled"]
    parquet = member.http.get(f"/v1/jobs/{job_id}/result", headers={"accept": "application/vnd.apache.parquet"})
    table = pq.read_table(io.BytesIO(parquet.content))
    assert table.column("id").to_pylist() == ["a", "2", "c", None, "e"]
