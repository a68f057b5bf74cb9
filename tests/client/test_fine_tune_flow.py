"""`fine_tune` uploads what is local, once, puts every option in its place, and leaves nothing behind when refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ondol import AsyncOndol, ConnectionFailed, OndolError, RequestRefused
from ondol.client.fine_tune_flow import place_options
from ondol.client.retry import RetryPolicy
from ondol.contract.files import check_expiry
from ondol.contract.fine_tune import FineTuneOptions
from tests.client.scripted_server import Reply, ScriptedServer, client_of, error_json, job_json

pytestmark = pytest.mark.unit

ROWS = b"text,label\nwarm,good\n"


def _file_id(number: int) -> str:
    return f"file_{number:026}"


def _uploaded(number: int) -> Callable[[httpx.Request], httpx.Response]:
    """The answer to an upload, with the digest of the part that holds the file."""

    def answer(request: httpx.Request) -> httpx.Response:
        head, content = request.content.split(b"application/octet-stream\r\n\r\n")
        content = content.rsplit(b"\r\n--", 1)[0]
        filename = head.split(b'filename="')[1].split(b'"')[0].decode()
        sha256 = hashlib.sha256(content).hexdigest()
        shown = {"id": _file_id(number), "filename": filename, "purpose": "fine-tune", "bytes": len(content)}
        return httpx.Response(200, json={**shown, "sha256": sha256, "created_at": 1790000000})

    return answer


def _accepted() -> httpx.Response:
    return httpx.Response(202, json=job_json(status="validating_files", kind="fine-tune"))


def _body(request: httpx.Request) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(request.content)
    return body


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_bytes(ROWS)
    return path


def test_local_files_are_uploaded_and_named_in_the_job(rows: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_bytes(b"{}\n")
    server = ScriptedServer([_uploaded(1), _uploaded(2), _accepted()])
    job = client_of(server).fine_tune(str(rows), validation=other, model="base:1", name="mood", priority="bulk")
    assert (job.kind, job.status, job.has_ended) == ("fine-tune", "validating_files", False)
    assert [request.url.path for request in server.requests] == ["/v1/files", "/v1/files", "/v1/jobs"]
    assert b'name="purpose"\r\n\r\nfine-tune' in server.requests[0].content
    assert ROWS in server.requests[0].content
    assert _body(server.requests[2]) == {
        "kind": "fine-tune",
        "model": "base:1",
        "input": None,
        "priority": "bulk",
        "options": {"output_name": "mood", "train_file": _file_id(1), "validation_file": _file_id(2)},
    }
    assert server.requests[2].headers["idempotency-key"]


def test_ids_are_used_as_they_are() -> None:
    server = ScriptedServer([_accepted()])
    client_of(server).fine_tune(_file_id(1), validation=_file_id(2), model="base", name="mood")
    options = _body(server.requests[0])["options"]
    assert (options["train_file"], options["validation_file"]) == (_file_id(1), _file_id(2))


def test_one_file_for_both_is_uploaded_once(rows: Path) -> None:
    server = ScriptedServer([_uploaded(1), _accepted()])
    client_of(server).fine_tune(rows, validation=rows.parent / "." / "rows.csv", model="base", name="mood")
    options = _body(server.requests[1])["options"]
    assert (options["train_file"], options["validation_file"]) == (_file_id(1), _file_id(1))


def test_short_names_and_hyperparameters_find_their_places() -> None:
    server = ScriptedServer([_accepted()])
    client_of(server).fine_tune(
        _file_id(1),
        model="base",
        name="mood",
        alias="production",
        text_column="body",
        epochs=2,
        batch_size=8,
        learning_rate=1e-4,
        seed=7,
        backbone="frozen",
        hyperparameters={"warmup_steps": 5},
        weight_decay=0.1,
        tags_column="ner",
        early_stopping={"patience": 2},
        validate_only=True,
        max_runtime_s=60,
    )
    options = _body(server.requests[0])["options"]
    assert options == {
        "output_name": "mood",
        "train_file": _file_id(1),
        "alias": "production",
        "columns": {"text": "body", "tags": "ner"},
        "hyperparameters": {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-4,
            "warmup_steps": 5,
            "weight_decay": 0.1,
        },
        "seed": 7,
        "backbone": "frozen",
        "early_stopping": {"patience": 2},
        "validate_only": True,
        "max_runtime_s": 60,
    }
    assert FineTuneOptions.model_validate(options).hyperparameters.num_train_epochs == 2


def test_options_by_path_join_their_group() -> None:
    assert place_options({"early_stopping.patience": 2, "early_stopping": {"threshold": 0.1}, "seed": None}) == {
        "early_stopping": {"patience": 2, "threshold": 0.1}
    }
    assert place_options({"early_stopping": {}}) == {"early_stopping": {}}
    assert place_options({"class_weights": "balanced"}) == {"class_weights": "balanced"}
    assert place_options({"class_weights.a.b": 2}) == {"class_weights": {"a.b": 2}}


@pytest.mark.parametrize(
    "given",
    [
        {"epochs": 1, "hyperparameters": {"num_train_epochs": 2}},
        {"learning_rate": 1, "hyperparameters": {"learning_rate": 2}},
        {"text_column": "a", "columns": {"text": "b"}},
        {"class_weights": "balanced", "class_weights.a": 2},
        {"output_name": "other"},
        {"train_file": _file_id(2)},
        {"validation": _file_id(2), "validation_file": _file_id(3)},
    ],
)
def test_what_is_given_twice_is_refused_before_anything_is_sent(given: dict[str, Any]) -> None:
    with pytest.raises(OndolError, match="given twice"):
        client_of(ScriptedServer([])).fine_tune(_file_id(1), model="base", name="mood", **given)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": "nowhere.csv"}, "cannot read nowhere.csv"),
        ({"validation": "nowhere.csv"}, "cannot read nowhere.csv"),
        ({"data": Path(__file__)}, "a file for fine-tune ends in"),
        ({"model": "Not A Model"}, "not a model reference"),
        ({"name": "Not A Name"}, "not a name for a model"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(change: dict[str, Any], says: str, rows: Path) -> None:
    given: dict[str, Any] = {"data": rows, "model": "base", "name": "mood", **change}
    with pytest.raises(OndolError, match=says):
        client_of(ScriptedServer([])).fine_tune(**given)


def test_a_refused_job_leaves_no_upload_behind(rows: Path) -> None:
    refused = httpx.Response(400, json=error_json("invalid_payload", "unknown field", "options.wieght_decay"))
    server = ScriptedServer([_uploaded(1), refused, httpx.Response(200, json={})])
    with pytest.raises(RequestRefused) as caught:
        client_of(server).fine_tune(rows, model="base", name="mood", wieght_decay=0.1)
    assert caught.value.param == "options.wieght_decay"
    assert _body(server.requests[1])["options"]["wieght_decay"] == 0.1
    assert (server.requests[2].method, server.requests[2].url.path) == ("DELETE", f"/v1/files/{_file_id(1)}")


def test_uploads_go_when_a_later_one_breaks(rows: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_bytes(ROWS)
    gone = httpx.Response(200, json={"id": _file_id(1), "object": "file", "deleted": True})
    broken: list[Reply] = [httpx.ReadError("broken pipe"), httpx.Response(413, json=error_json("too_large"))]
    for second in (*broken, KeyboardInterrupt()):
        server = ScriptedServer([_uploaded(1), second, gone])
        with pytest.raises((OndolError, KeyboardInterrupt)):
            client_of(server).fine_tune(rows, validation=other, model="base", name="mood")
        assert (server.requests[2].method, server.requests[2].url.path) == ("DELETE", f"/v1/files/{_file_id(1)}")


def test_uploads_expire_by_themselves(rows: Path) -> None:
    server = ScriptedServer([_uploaded(1), _accepted()])
    client_of(server).fine_tune(rows, model="base", name="mood")
    assert b'name="expires_after[seconds]"\r\n\r\n2592000\r\n' in server.requests[0].content
    assert check_expiry("2592000") == 30 * 86_400  # the server takes it


def test_files_of_others_stay_when_the_job_is_refused() -> None:
    server = ScriptedServer([httpx.Response(404, json=error_json("model_not_found"))])
    with pytest.raises(OndolError):
        client_of(server).fine_tune(_file_id(1), model="base", name="mood")
    assert len(server.requests) == 1


def test_uploads_stay_when_the_job_may_have_been_accepted(rows: Path) -> None:
    lost = [httpx.ReadError("lost")] * 4  # a server that has answered before is tried three times more a retry
    server = ScriptedServer([_uploaded(1), *lost])
    client = client_of(server)
    client.policy = RetryPolicy(max_retries=1, base_s=0.001)
    with pytest.raises(ConnectionFailed):
        client.fine_tune(rows, model="base", name="mood")
    assert len({request.headers["idempotency-key"] for request in server.requests[1:]}) == 1


def test_the_async_client_does_the_same(rows: Path) -> None:
    server = ScriptedServer(
        [
            _uploaded(1),
            _accepted(),
            httpx.Response(200, json=job_json(kind="fine-tune", status="running", pause_requested_at=1790000001.0)),
            httpx.Response(200, json=job_json(kind="fine-tune")),
            httpx.Response(200, json={"object": "list", "data": [], "has_more": False}),
        ]
    )

    async def submit() -> None:
        async with AsyncOndol("http://ondol.test", transport=server) as client:
            job = await client.fine_tune(rows, model="base", name="mood", epochs=1)
            assert job.status == "validating_files"
            assert (await job.pause()).pause_requested_at is not None
            assert (await job.resume()).status == "queued"
            assert await job.checkpoints() == []

    asyncio.run(submit())
    assert _body(server.requests[1])["options"]["hyperparameters"] == {"num_train_epochs": 1}
    assert [request.url.path for request in server.requests[2:]] == [
        f"/v1/jobs/job_1/{verb}" for verb in ("pause", "resume", "checkpoints")
    ]
