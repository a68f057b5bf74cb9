"""Whatever is wrong with a request, the answer is 4xx in OpenAI's shape, names the field, and nothing is stored."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import given

from ondol.contract.errors import InvalidPayload
from ondol.contract.jobs import parse_request
from ondol.contract.payloads import MAX_DEPTH
from ondol.sql.many_rows import dump_json
from tests.hostile.outcomes import outcome
from tests.hostile.strategies import json_values
from tests.http.api_process import Member, job_body
from tests.hypothesis_runs import bounded

pytestmark = pytest.mark.integration

BIG_TEXT = "x" * 10_000_000
BAD_JOBS: list[tuple[str, Any, int, str | None]] = [
    ("unknown model", job_body(model="nothing"), 404, "model"),
    ("path as a model", job_body(model="../../etc"), 400, "model"),
    ("unknown version", job_body(model="tiny:9"), 404, "model"),
    ("no model", job_body(model=...), 400, "model"),
    ("model of a wrong type", job_body(model=7), 400, "model"),
    ("unknown kind", job_body(kind="poetry"), 400, "kind"),
    ("kind without a worker", job_body(kind="question-answering"), 400, "kind"),
    ("no kind", job_body(kind=...), 400, "kind"),
    ("unknown option", job_body(options={"poling": "mean"}), 400, "options.poling"),
    ("wrong option", job_body(options={"pooling": "median"}), 400, "options.pooling"),
    ("option of a wrong type", job_body(options={"dimensions": "8"}), 400, "options.dimensions"),
    ("no pooler", job_body(options={"pooling": "pooler"}), 400, "options.pooling"),
    ("no such layer", job_body(options={"layer": 3}), 400, "options.layer"),
    ("too many dimensions", job_body(options={"dimensions": 9}), 400, "options.dimensions"),
    ("too long", job_body(options={"max_length": 17}), 400, "options.max_length"),
    ("unknown prompt", job_body(options={"prompt_name": "poem"}), 400, "options.prompt_name"),
    ("two prompts", job_body(options={"prompt": "a", "prompt_name": "query"}), 400, "options"),
    ("prompt for ids", job_body(input=[[1, 2]], options={"prompt": "a"}), 400, "options.prompt"),
    ("unknown field", job_body(inputs=["x"]), 400, "inputs"),
    ("no input", job_body(input=...), 400, "input"),
    ("empty list", job_body(input=[]), 400, "input"),
    ("empty string", job_body(input=["a", ""]), 400, "input[1]"),
    ("10 MB text", job_body(input=["a", BIG_TEXT]), 413, "input[1]"),
    ("number among texts", job_body(input=["a", 3]), 400, "input[1]"),
    ("null as input", job_body(input=[None]), 400, "input[0]"),
    ("object as input", job_body(input={"text": "a"}), 400, "input"),
    ("token id outside the vocabulary", job_body(input=[[1, 2], [1000]]), 400, "input[1]"),
    ("negative token id", job_body(input=[[-1]]), 400, "input[0][0]"),
    ("empty token list", job_body(input=[[]]), 400, "input[0]"),
    ("deadline in the past", job_body(deadline_s=-1), 400, "deadline_s"),
    ("wrong priority", job_body(priority="urgent"), 400, "priority"),
    ("metadata of a wrong type", job_body(metadata="x"), 400, "metadata"),
    ("body is a list", [1], 400, None),
    ("import without a right", {"kind": "import", "input": {"path": "/x"}, "options": {"name": "m"}}, 403, None),
]
BAD_BODIES: list[tuple[str, bytes, str | None]] = [
    ("no JSON", b"{", None),
    ("NaN", b'{"kind":"embedding","model":"tiny","input":["a"],"deadline_s":NaN}', None),
    ("Infinity", b'{"kind":"embedding","model":"tiny","input":["a"],"deadline_s":Infinity}', None),
    ("number over a double", b'{"kind":"embedding","model":"tiny","input":["a"],"deadline_s":1e400}', None),
    ("lone surrogate", b'{"kind":"embedding","model":"tiny","input":["\\ud800"]}', None),
    ("not UTF-8", b'{"kind":"embedding","model":"tiny","input":["\xff"]}', None),
    ("nothing", b"", None),
    ("too deep", b"[" * 5000 + b"]" * 5000, None),
]
BAD_CALLS: list[tuple[str, Any, int, str | None]] = [
    ("unknown model", {"model": "nothing", "input": "a"}, 404, "model"),
    ("path as a model", {"model": "../../etc", "input": "a"}, 400, "model"),
    ("no model", {"input": "a"}, 400, "model"),
    ("no input", {"model": "tiny"}, 400, "input"),
    ("empty string", {"model": "tiny", "input": ""}, 400, "input[0]"),
    ("empty list", {"model": "tiny", "input": []}, 400, "input"),
    ("wrong type", {"model": "tiny", "input": 5}, 400, "input"),
    ("mixed", {"model": "tiny", "input": ["a", 5]}, 400, "input[1]"),
    ("token id outside the vocabulary", {"model": "tiny", "input": [5, 1000]}, 400, "input[0]"),
    ("too many inputs", {"model": "tiny", "input": ["a"] * 2049}, 400, "input"),
    ("10 MB text", {"model": "tiny", "input": BIG_TEXT}, 413, "input[0]"),
    ("wrong encoding", {"model": "tiny", "input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
    ("no dimensions", {"model": "tiny", "input": "a", "dimensions": 0}, 400, "dimensions"),
    ("too many dimensions", {"model": "tiny", "input": "a", "dimensions": 9}, 400, "dimensions"),
    ("no pooler", {"model": "tiny", "input": "a", "pooling": "pooler"}, 400, "pooling"),
    ("store of a wrong type", {"model": "tiny", "input": "a", "store": "yes"}, 400, "store"),
    ("body is a string", "tiny", 400, None),
]


@pytest.mark.parametrize(("body", "status", "param"), [row[1:] for row in BAD_JOBS], ids=[row[0] for row in BAD_JOBS])
def test_a_bad_job_is_refused_by_its_field_and_leaves_nothing(
    member: Member, body: Any, status: int, param: str | None
) -> None:
    answer = member.http.post("/v1/jobs", json=body, headers={"idempotency-key": "k"})
    assert_refused(answer, status, param)
    assert member.count_rows() == 0


@pytest.mark.parametrize(("body", "param"), [row[1:] for row in BAD_BODIES], ids=[row[0] for row in BAD_BODIES])
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/batch", "/v1/embeddings"])
def test_a_body_that_is_not_json_is_refused(member: Member, path: str, body: bytes, param: str | None) -> None:
    answer = member.http.post(path, content=body, headers={"content-type": "application/json"})
    assert_refused(answer, 400, param)
    assert member.count_rows() == 0


@pytest.mark.parametrize(("body", "status", "param"), [row[1:] for row in BAD_CALLS], ids=[row[0] for row in BAD_CALLS])
def test_a_bad_call_is_refused_by_its_field(member: Member, body: Any, status: int, param: str | None) -> None:
    assert_refused(member.http.post("/v1/embeddings", json=body), status, param)
    assert member.count_rows() == 0


def test_a_bad_item_of_a_batch_spoils_no_other(member: Member) -> None:
    items = [job_body(), job_body(model="nothing"), 5, job_body(input=[]), job_body(input="fine")]
    answer = member.http.post("/v1/jobs/batch", json={"jobs": items})
    assert answer.status_code == 200
    data = answer.json()["data"]
    assert [item.get("status") for item in data] == ["queued", None, None, None, "queued"]
    assert [(item["index"], item["error"]["param"]) for item in data if "error" in item and "id" not in item] == [
        (1, "model"),
        (2, None),
        (3, "input"),
    ]
    assert member.count_rows() == 4  # two jobs and their inputs


@pytest.mark.parametrize("items", [[], [{}] * 1001, "x"], ids=["empty", "1001", "string"])
def test_a_batch_of_a_wrong_size_is_refused(member: Member, items: Any) -> None:
    assert_refused(member.http.post("/v1/jobs/batch", json={"jobs": items}), 400, "jobs")


def test_a_body_over_the_limit_is_refused_before_it_is_read(member: Member) -> None:
    answer = member.http.post("/v1/jobs", content=b"[" + b"1," * 20_000_000 + b"1]")
    assert_refused(answer, 413, None)


def test_a_body_of_unknown_length_is_refused_while_it_is_read(member: Member) -> None:
    answer = member.http.post("/v1/jobs", content=(b" " * 1_000_000 for _ in range(40)))
    assert_refused(answer, 413, None)
    assert member.count_rows() == 0


def test_another_content_type_is_refused(member: Member) -> None:
    answer = member.http.post("/v1/jobs", data={"kind": "embedding"})
    assert_refused(answer, 400, "Content-Type")


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/jobs?limit=0", "limit"),
        ("/v1/jobs?limit=x", "limit"),
        ("/v1/jobs?status=done", "status"),
        ("/v1/jobs?kind=poetry", "kind"),
        ("/v1/jobs?created_after=nan", "created_after"),
        ("/v1/jobs?model=..%2Fx", "model"),
        ("/v1/models/..%2F..%2Fetc", "model"),
    ],
)
def test_a_bad_query_is_refused_by_its_field(member: Member, path: str, param: str) -> None:
    assert_refused(member.http.get(path), 400, param)


@pytest.mark.parametrize(
    "path", ["/v1/jobs/nope", "/v1/jobs/%00", "/v1/jobs/job_00000000000000000000000000", "/v1/x", "/"]
)
def test_what_does_not_exist_is_404_in_the_same_shape(member: Member, path: str) -> None:
    assert_refused(member.http.get(path), 404, ...)


def test_a_method_that_is_not_answered_is_405_in_the_same_shape(member: Member) -> None:
    answer = member.http.put("/v1/jobs", json={})
    assert_refused(answer, 405, None)
    assert answer.headers["allow"] == "GET, POST"
    assert member.http.get("/v1/jobs/batch").headers["allow"] == "POST"


@pytest.mark.parametrize("key", ["", "k" * 256, "a\tb"], ids=["empty", "long", "control"])
def test_a_bad_idempotency_key_is_refused(member: Member, key: str) -> None:
    answer = member.http.post("/v1/jobs", json=job_body(), headers={"idempotency-key": key})
    assert_refused(answer, 400, "Idempotency-Key")
    assert member.count_rows() == 0


def assert_refused(answer: httpx.Response, status: int, param: Any) -> None:
    """The answer has this status, OpenAI's error body with this field (... for any), and a request id."""
    assert answer.status_code == status, answer.text
    body = json.loads(answer.content)
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["code"], str) and body["error"]["message"]
    if param is not ...:
        assert body["error"]["param"] == param, body
    assert answer.headers["x-request-id"]


def nested(depth: int) -> Any:
    """An object within an object, so many times."""
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "metadata",
    [nested(50_000), nested(300), nested(MAX_DEPTH + 1), {"n": 2**70}, {"n": [-(2**63) - 1]}, {"n": math.nan}],
    ids=["50000 deep", "300 deep", "one too deep", "71 bits", "below 64 bits", "NaN"],
)
def test_metadata_that_an_encoder_would_not_write_is_a_wrong_field(metadata: Any) -> None:
    with pytest.raises(InvalidPayload) as refused:
        parse_request({"kind": "embedding", "metadata": metadata})
    assert refused.value.param == "metadata"


@pytest.mark.parametrize("metadata", [nested(MAX_DEPTH), {"n": [2**64 - 1, -(2**63)]}], ids=["deep", "large"])
def test_metadata_up_to_the_limits_is_given_back_as_it_came(metadata: Any) -> None:
    taken = parse_request({"kind": "embedding", "metadata": metadata}).metadata
    assert orjson.loads(orjson.dumps([{"jobs": [taken]}])) == [{"jobs": [metadata]}]


@bounded(300, num_long=20_000)
@given(value=json_values, field=st.sampled_from(["metadata", "options"]))
def test_what_a_free_field_takes_every_encoder_writes(value: Any, field: str) -> None:
    found = outcome(lambda: parse_request({"kind": "embedding", field: {"a": value}}), InvalidPayload)
    if isinstance(found, InvalidPayload):
        assert found.param == field
    else:
        assert orjson.dumps([found.metadata, found.options])
        dump_json([found.metadata, found.options]).encode()


def test_a_job_with_odd_metadata_spoils_no_other_of_its_batch(member: Member) -> None:
    items = [job_body(), job_body(metadata=nested(300)), job_body()]
    answer = member.http.post("/v1/jobs/batch", json={"jobs": items})
    assert [item.get("status") for item in answer.json()["data"]] == ["queued", None, "queued"]
    assert answer.json()["data"][1]["error"]["param"] == "metadata"
    assert len(member.http.get("/v1/jobs").json()["data"]) == 2
