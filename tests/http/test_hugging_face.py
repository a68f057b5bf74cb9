"""`/models/{ref}`: Hugging Face's own client gets what it expects, and refusals in the shape that it reads."""

from __future__ import annotations

from typing import Any

import httpx
import huggingface_hub.constants
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

from tests.http.api_process import MODEL, MOODS, NAMES, Member
from tests.http.peer_worker import PeerWorker, entities_of, scores_of, vector_of
from tests.http.test_calls import TIME_HEADERS

pytestmark = pytest.mark.integration

PAIR = {"text": "is it warm", "text_pair": "very"}


@pytest.fixture(autouse=True)
def _client_may_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, as all tests are, the client would refuse loopback too; what it reaches is limited by `conftest.py`."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hugger(member: Member, worker: PeerWorker) -> Member:
    """Somebody with a model of each task, and a worker that answers."""
    member.api.publish(member.project_id, "moods", MOODS)
    member.api.publish(member.project_id, "names", NAMES)
    return member


def client_of(member: Member, path: str) -> InferenceClient:
    return InferenceClient(model=f"{member.api.url}/models/{path}", api_key=member.secret)


def post(member: Member, path: str, inputs: Any, **parameters: Any) -> httpx.Response:
    return member.http.post(f"/models/{path}", json={"inputs": inputs, "parameters": parameters})


@pytest.mark.parametrize("ref", [MODEL, "tiny:1", "tiny@default", f"{MODEL}/feature-extraction"])
def test_huggingfaces_client_gets_vectors(hugger: Member, ref: str) -> None:
    client = client_of(hugger, ref)
    one, two = client.feature_extraction("a text"), client.feature_extraction(["a", "b c"])
    assert one.dtype == np.float32 and np.array_equal(one, vector_of("a text")[None])
    assert np.array_equal(two, np.stack([vector_of("a"), vector_of("b c")]))


def test_parameters_of_feature_extraction_reach_the_worker(hugger: Member, worker: PeerWorker) -> None:
    client = client_of(hugger, MODEL)
    client.feature_extraction("a", normalize=False, prompt_name="query", truncate=True, truncation_direction="left")
    wanted = {"normalize": False, "prompt_name": "query", "truncate": "left"}
    assert {name: worker.seen[-1].options[name] for name in wanted} == wanted
    assert client.feature_extraction("a", dimensions=4).shape == (1, 4)
    assert post(hugger, MODEL, "a", normalize=False, new="ignored").status_code == 200
    assert (worker.seen[-1].options["normalize"], worker.seen[-1].options["truncate"]) == (False, "error")


def test_huggingfaces_client_gets_labels(hugger: Member, worker: PeerWorker) -> None:
    client = client_of(hugger, "moods")
    found = client.text_classification("a text")
    scores = sorted(zip(scores_of("a text").tolist(), MOODS.labels, strict=True), reverse=True)
    assert [(np.float32(item.score).item(), item.label) for item in found] == scores
    assert [item.label for item in client.text_classification("a text", top_k=1)] == [scores[0][1]]
    client.text_classification("a text", function_to_apply="sigmoid")
    assert worker.seen[-1].options["function_to_apply"] == "sigmoid"


def test_huggingfaces_client_gets_entities(hugger: Member, worker: PeerWorker) -> None:
    text = "Ada met Grace"
    found = client_of(hugger, "names").token_classification(text, ignore_labels=["X"], stride=2)
    assert [
        {name: getattr(item, name) for name in ("entity_group", "score", "word", "start", "end")} for item in found
    ] == entities_of(text)
    assert (worker.seen[-1].options["ignore_labels"], worker.seen[-1].options["stride"]) == (["X"], 2)
    client_of(hugger, "names").token_classification(text, aggregation_strategy="first")
    assert worker.seen[-1].options["aggregation_strategy"] == "first"


def test_lists_and_pairs_give_one_answer_an_input(hugger: Member) -> None:
    many = post(hugger, "moods", ["a", PAIR]).json()
    assert [[item["label"] for item in found] for found in many] == [
        [label for _, label in sorted(zip((-scores_of(item)).tolist(), MOODS.labels, strict=True))]
        for item in ("a", PAIR)
    ]
    assert post(hugger, "moods", PAIR).json() == [many[1]]
    texts = ["Ada", "nobody"]
    assert post(hugger, "names", texts).json() == [entities_of(text) for text in texts]


def test_answers_say_where_the_time_went(hugger: Member) -> None:
    for ref in (MODEL, "moods", "names"):
        answer = post(hugger, ref, "a")
        assert all(float(answer.headers[name]) >= 0 for name in TIME_HEADERS) and answer.headers["x-request-id"]


def test_texts_that_are_too_long_are_cut_only_if_asked(hugger: Member, worker: PeerWorker) -> None:
    inputs = ["short", "one " * 30]
    for ref in (MODEL, "moods"):
        refused = post(hugger, ref, inputs)
        assert_refused(refused, 400, "inputs[1]", "context_length_exceeded")
        assert_refused(post(hugger, ref, inputs, truncate=False), 400, "inputs[1]", "context_length_exceeded")
        assert post(hugger, ref, inputs, truncate=True).status_code == 200
        assert post(hugger, ref, inputs, truncation=True, truncation_direction="Left").status_code == 200
        assert worker.seen[-1].options["truncate"] == "left"
    assert post(hugger, "names", inputs).status_code == 200  # these are never cut


BAD: list[tuple[str, str, Any, int, str | None, str]] = [
    ("unknown model", "nothing", {"inputs": "a"}, 404, "model", "model_not_found"),
    ("no reference", "Not%20One", {"inputs": "a"}, 400, "model", "invalid_payload"),
    ("unknown task", "tiny/poetry", {"inputs": "a"}, 400, "task", "invalid_payload"),
    ("no head", "tiny/text-classification", {"inputs": "a"}, 400, "model", "model_has_no_head"),
    ("another head", "moods/token-classification", {"inputs": "a"}, 400, "model", "model_has_no_head"),
    ("no inputs", "moods", {}, 400, "inputs", "invalid_payload"),
    ("empty list", "moods", {"inputs": []}, 400, "inputs", "invalid_payload"),
    ("number", "names", {"inputs": ["a", 3]}, 400, "inputs[1]", "invalid_payload"),
    ("half a pair", "moods", {"inputs": {"text": "a"}}, 400, "inputs[0].text_pair", "invalid_payload"),
    ("pair to tag", "names", {"inputs": PAIR}, 400, "inputs", "invalid_payload"),
    ("pair to embed", "tiny", {"inputs": [PAIR]}, 400, "inputs[0]", "invalid_payload"),
    ("unknown token id", "tiny", {"inputs": [[1], [1000]]}, 400, "inputs[1]", "invalid_payload"),
    ("too many", "moods", {"inputs": ["a"] * 2049}, 400, "inputs", "invalid_payload"),
    ("parameters of a wrong type", "moods", {"inputs": "a", "parameters": [1]}, 400, "parameters", "invalid_payload"),
    (
        "wrong top_k",
        "moods",
        {"inputs": "a", "parameters": {"top_k": "all"}},
        400,
        "parameters.top_k",
        "invalid_payload",
    ),
    (
        "wrong truncate",
        "moods",
        {"inputs": "a", "parameters": {"truncate": 5}},
        400,
        "parameters.truncate",
        "invalid_payload",
    ),
    (
        "wrong stride",
        "names",
        {"inputs": "a", "parameters": {"stride": 14}},
        400,
        "parameters.stride",
        "invalid_payload",
    ),
    ("wrong direction", "tiny", {"inputs": "a", "truncation_direction": "up"}, 400, "truncation_direction", ""),
    ("unknown prompt", "tiny", {"inputs": "a", "prompt_name": "poem"}, 400, "prompt_name", "invalid_payload"),
    ("body is a list", "moods", ["a"], 400, None, "invalid_payload"),
]


@pytest.mark.parametrize("row", BAD, ids=[row[0] for row in BAD])
def test_a_bad_request_is_refused_by_its_field_in_huggingfaces_shape(hugger: Member, row: Any) -> None:
    _, path, body, status, param, code = row
    assert_refused(hugger.http.post(f"/models/{path}", json=body), status, param, code or "invalid_payload")
    assert hugger.count_rows() == 0


def test_huggingfaces_client_shows_what_is_wrong(hugger: Member) -> None:
    with pytest.raises(BadRequestError, match="no trained head"):
        client_of(hugger, f"{MODEL}/text-classification").text_classification("a")
    with pytest.raises(HfHubHTTPError, match="API key") as caught:
        InferenceClient(model=f"{hugger.api.url}/models/{MODEL}", api_key="wrong").feature_extraction("a")
    assert caught.value.response.status_code == 401


def assert_refused(answer: httpx.Response, status: int, param: str | None, code: str) -> None:
    """The answer has this status and Hugging Face's error body, whose sentence names the field."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error", "error_type", "param"}
    assert isinstance(body["error"], str) and body["error"]
    assert (body["param"], body["error_type"]) == (param, code), body
    if param and code == "invalid_payload":
        assert param.split(".")[-1].partition("[")[0] in body["error"]
    assert answer.headers["x-request-id"]


def test_a_call_tags_no_more_than_it_can_answer(hugger: Member) -> None:
    refused = post(hugger, "names", ["word " * 40_000] * 8)
    assert refused.status_code == 413
    assert "a job takes more" in refused.json()["error"]
