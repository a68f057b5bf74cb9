"""Batches by OpenAI's client: from the file of requests to the files of answers and of errors."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import openai
import psutil
import pytest
import sqlalchemy as sa
from openai.types import Batch

from ondol.contract.states import JobState
from ondol.sql.tables import jobs
from ondol.sql.unit_of_work import UnitOfWork
from tests.cluster import Cluster
from tests.openai_client.conftest import BASE
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

ENDED = {"completed", "failed", "cancelled", "expired"}
TEXTS = [f"the floor of room {number} is warm" for number in range(40)]


def _line(custom_id: str, value: Any, **body: Any) -> str:
    body = {"model": BASE, "input": value, **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body})


def _upload(client: openai.OpenAI, lines: Sequence[str]) -> str:
    return client.files.create(file=("requests.jsonl", "\n".join(lines).encode()), purpose="batch").id


def _create(client: openai.OpenAI, file_id: str, **more: Any) -> Batch:
    return client.batches.create(input_file_id=file_id, endpoint="/v1/embeddings", completion_window="24h", **more)


def _ended(client: openai.OpenAI, batch_id: str) -> Batch:
    def look() -> Batch | None:
        batch = client.batches.retrieve(batch_id)
        return batch if batch.status in ENDED else None

    found = wait_until(look, within_s=120, what=f"batch {batch_id} to end")
    assert found is not None
    return found


def _content(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in client.files.content(file_id).read().splitlines()]


def test_a_batch_runs_to_its_files_in_the_order_of_its_lines(client: openai.OpenAI) -> None:
    lines = [_line(f"request-{number}", text) for number, text in enumerate(TEXTS)]
    lines[7] = '{"custom_id": "request-7", "method": "POST"'
    lines[9] = _line("request-9", "")
    lines.append(_line("several", TEXTS[:3]))
    made = _create(client, _upload(client, lines), metadata={"team": "hosts"})
    assert (made.object, made.endpoint, made.completion_window) == ("batch", "/v1/embeddings", "24h")
    assert made.status == "validating" and made.metadata == {"team": "hosts"}
    assert made.request_counts is not None and made.request_counts.total == 41
    batch = _ended(client, made.id)
    assert batch.status == "completed", batch.errors
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 41, "completed": 39, "failed": 2}
    assert None not in (batch.in_progress_at, batch.finalizing_at, batch.completed_at)

    answers = _content(client, batch.output_file_id)
    expected = [f"request-{n}" for n in range(40) if n not in (7, 9)] + ["several"]
    assert [answer["custom_id"] for answer in answers] == expected
    assert len({answer["id"] for answer in answers}) == len(answers)
    direct = client.embeddings.create(model=BASE, input=TEXTS)
    for answer in answers[:-1]:
        number = int(answer["custom_id"].removeprefix("request-"))
        assert answer["error"] is None and answer["response"]["status_code"] == 200
        body = answer["response"]["body"]
        assert (body["object"], body["model"], len(body["data"])) == ("list", f"{BASE}:1", 1)
        assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0
        np.testing.assert_allclose(body["data"][0]["embedding"], direct.data[number].embedding, atol=1e-5)
    several = answers[-1]["response"]["body"]["data"]
    assert [item["index"] for item in several] == [0, 1, 2]
    np.testing.assert_allclose(several[2]["embedding"], direct.data[2].embedding, atol=1e-5)

    failed = _content(client, batch.error_file_id)
    assert [line["custom_id"] for line in failed] == ["line:8", "request-9"]
    assert failed[0]["error"]["code"] == failed[0]["response"]["body"]["error"]["code"] == "invalid_json_line"
    assert failed[1]["response"]["status_code"] == 400


def test_output_files_are_files_like_others(client: openai.OpenAI) -> None:
    made = _create(
        client,
        _upload(client, [_line("a", "warm", encoding_format="base64", dimensions=4)]),
        output_expires_after={"anchor": "created_at", "seconds": 3_600},
    )
    batch = _ended(client, made.id)
    assert batch.output_file_id is not None and batch.error_file_id is None
    file = client.files.retrieve(batch.output_file_id)
    assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    assert file.expires_at == file.created_at + 3_600
    assert batch.output_file_id in [found.id for found in client.files.list(purpose="batch_output")]
    [answer] = _content(client, batch.output_file_id)
    vector = np.frombuffer(base64.b64decode(answer["response"]["body"]["data"][0]["embedding"]), dtype="<f4")
    assert vector.shape == (4,)
    assert client.batches.retrieve(batch.id) == batch
    client.files.delete(batch.output_file_id)
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("a.jsonl", b"{}"), purpose="batch_output")  # type: ignore[arg-type]  # only the server makes such


def test_files_that_nobody_recorded_are_written_again_the_same(client: openai.OpenAI, cluster: Cluster) -> None:
    made = _create(client, _upload(client, [_line("a", "warm"), _line("b", "")]))
    before = _ended(client, made.id)
    contents = [_content(client, before.output_file_id), _content(client, before.error_file_id)]

    def forget(uow: UnitOfWork) -> None:
        """As if the api had died before its transaction."""
        batch = uow.jobs.get(made.id, uow.keys.ensure_project()).batch or {}
        unwritten = {name: batch[name] for name in ("endpoint", "completion_window", "num_lines")}
        uow.conn.execute(sa.update(jobs).where(jobs.c.id == made.id).values(batch=unwritten))
        uow.files.forget([str(before.output_file_id), str(before.error_file_id)])

    cluster.database.write(forget)
    assert next(iter(client.batches.list())).status == "finalizing"
    after = _ended(client, made.id)
    assert (after.output_file_id, after.error_file_id) == (before.output_file_id, before.error_file_id)
    assert [_content(client, after.output_file_id), _content(client, after.error_file_id)] == contents


def test_batches_are_listed_newest_first_in_pages_and_apart_from_other_jobs(client: openai.OpenAI) -> None:
    file_id = _upload(client, [_line("a", "warm")])
    made = [_create(client, file_id).id for _ in range(3)]
    listed = [batch.id for batch in client.batches.list(limit=2)]
    assert [batch_id for batch_id in listed if batch_id in made] == made[::-1]
    first = client.batches.list(limit=1)
    assert first.has_more and [batch.id for batch in first.data] == [made[-1]]
    for batch_id in made:
        assert _ended(client, batch_id).status == "completed"
    job = client.post("/jobs", body={"kind": "embedding", "model": BASE, "input": "warm"}, cast_to=dict[str, Any])
    with pytest.raises(openai.NotFoundError, match="is no batch"):
        client.batches.retrieve(str(job["id"]))


def test_a_batch_of_nothing_but_bad_lines_fails_and_says_why(client: openai.OpenAI) -> None:
    lines = [_line("same", "", encoding_format="float"), _line("same", "", encoding_format="float")]
    batch = _ended(client, _create(client, _upload(client, lines)).id)
    assert batch.status == "failed" and batch.failed_at is not None
    assert batch.errors is not None and batch.errors.data and batch.errors.data[0].message


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/chat/completions"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"output_expires_after": {"seconds": 5}}, "output_expires_after.seconds"),
        ({"input_file_id": "file_" + "0" * 26}, "input_file_id"),
    ],
)
def test_what_cannot_be_run_is_refused_by_the_field(client: openai.OpenAI, change: dict[str, Any], param: str) -> None:
    body = {"input_file_id": _upload(client, [_line("a", "b")]), "endpoint": "/v1/embeddings"} | change
    with pytest.raises(openai.APIStatusError) as caught:
        client.post("/batches", body=body, cast_to=Batch)
    error = caught.value.body
    assert isinstance(error, dict) and error["param"] == param
    assert caught.value.status_code == (404 if param == "input_file_id" else 400)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["not json"], "line 1 is not JSON"),
        ([_line("a", "b", model="nobody")], "nobody"),
        ([_line("a", "b", dimensions=100_000)], "line 1, body.dimensions"),
        ([_line("a", "b").replace("embeddings", "moderations")], "is not for /v1/embeddings"),
    ],
)
def test_a_file_that_says_nothing_to_run_is_refused(client: openai.OpenAI, lines: list[str], said: str) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=said) as caught:
        _create(client, _upload(client, lines))
    assert caught.value.param == "input_file_id"


@contextmanager
def _standing_worker(cluster: Cluster) -> Iterator[None]:
    """The idle worker does nothing meanwhile, for less than its lease.

    It is the device process that is stopped: a stopped worker might hold the database.
    """
    worker = psutil.Process(cluster.device_pid("worker0"))
    worker.suspend()
    try:
        yield
    finally:
        worker.resume()


def test_a_batch_that_is_cancelled_before_it_ran_has_no_files(client: openai.OpenAI, cluster: Cluster) -> None:
    file_id = _upload(client, [_line("a", "b")])
    with _standing_worker(cluster):
        made = _create(client, file_id)
        assert client.batches.cancel(made.id).status == "cancelled"
    batch = client.batches.cancel(made.id)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("cancelled", None, None)
    assert batch.cancelling_at is not None and batch.cancelled_at is not None


def test_what_was_done_before_a_cancel_is_in_the_output_file(client: openai.OpenAI) -> None:
    lines = [_line(f"request-{number}", f"text {number}") for number in range(30_000)]
    made = _create(client, _upload(client, lines))

    def num_done() -> int:
        counts = client.batches.retrieve(made.id).request_counts
        return 0 if counts is None else counts.completed

    wait_until(num_done, within_s=120, what="the first lines to be done")
    assert client.batches.cancel(made.id).status == "cancelling"
    batch = _ended(client, made.id)
    assert batch.status == "cancelled" and batch.error_file_id is None
    answers = _content(client, batch.output_file_id)
    counts = batch.request_counts
    assert counts is not None and 0 < counts.completed == len(answers) < counts.total == 30_000
    numbers = [int(answer["custom_id"].removeprefix("request-")) for answer in answers]
    assert numbers == sorted(set(numbers))


def test_the_same_key_makes_one_batch(client: openai.OpenAI, cluster: Cluster) -> None:
    file_id = _upload(client, [_line("a", "b")])
    headers = {"Idempotency-Key": "batch-once"}
    first, second = (_create(client, file_id, extra_headers=headers) for _ in range(2))
    assert first.id == second.id
    assert _ended(client, first.id).status == "completed"
    assert cluster.database.read(lambda uow: uow.jobs.states_of([first.id])[first.id][0]) is JobState.SUCCEEDED
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(first.id)
