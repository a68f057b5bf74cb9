"""Classifying and tagging: a call for a few short inputs, jobs for more, typed results in input order."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from ondol import Entity, ItemErrors, LabelScore, OndolAPIError, OndolError, PartialResults
from ondol.client.classify_flow import classify_request
from tests.client.scripted_server import ScriptedServer, client_of, error_json, job_json

pytestmark = pytest.mark.unit

GLAD = [{"label": "glad", "score": 0.75, "predicted": True}, {"label": "sad", "score": 0.25, "predicted": False}]
ADA = {"entity_group": "NAME", "score": 0.5, "word": "Ada", "start": 0, "end": 3}
TOKEN = {"entity": "B-NAME", "score": 0.5, "index": 1, "word": "ada", "start": 0, "end": 3}


def _body(request: httpx.Request) -> Any:
    return json.loads(request.content)


def _answer(*found: Any) -> httpx.Response:
    return httpx.Response(200, json=list(found))


def _as_job(*items: dict[str, Any]) -> list[httpx.Response]:
    """A job: accepted, ended, its result given item by item."""
    lines = "".join(json.dumps(item) + "\n" for item in items)
    return [
        httpx.Response(202, json=job_json("job_1")),
        httpx.Response(200, json=job_json("job_1", "succeeded")),
        httpx.Response(200, content=lines.encode()),
    ]


def _item(index: int, output: Any) -> dict[str, Any]:
    return {"index": index, "output": output, "tokens": 3, "truncated": False}


def _failed(index: int) -> dict[str, Any]:
    return {"index": index, "error": {"code": "context_length_exceeded", "message": "long"}, "tokens": 9}


def test_one_text_gives_its_labels_and_a_list_gives_lists() -> None:
    found = client_of(ScriptedServer([_answer(GLAD)])).classify("a", model="m")
    assert found == [LabelScore("glad", 0.75, predicted=True), LabelScore("sad", 0.25, predicted=False)]
    plain = [{"label": "glad", "score": 1.0}]
    assert client_of(ScriptedServer([_answer(plain, plain)])).classify(["a", "b"], model="m") == [
        [LabelScore("glad", 1.0)],
        [LabelScore("glad", 1.0)],
    ]


def test_a_call_names_model_and_task_and_cuts_long_texts() -> None:
    server = ScriptedServer([_answer(GLAD), _answer(GLAD)])
    client_of(server).classify("a", model="moods@production", top_k=2, threshold=None)
    client_of(server).classify("a", model="m", truncate="error")
    assert server.requests[0].url.path == "/models/moods@production/text-classification"
    assert _body(server.requests[0]) == {"inputs": ["a"], "parameters": {"top_k": 2, "truncate": "right"}}
    assert _body(server.requests[1])["parameters"] == {"truncate": "error"}


@pytest.mark.parametrize("pair", [{"text": "a", "text_pair": "b"}, ("a", "b"), ["a", "b"]])
def test_pairs_go_together(pair: Any) -> None:
    server = ScriptedServer([_answer(GLAD, GLAD)])
    assert len(client_of(server).classify([pair, "c"], model="m")) == 2
    assert _body(server.requests[0])["inputs"] == [{"text": "a", "text_pair": "b"}, "c"]


def test_a_lone_pair_gives_one_result() -> None:
    found = client_of(ScriptedServer([_answer(GLAD)])).classify({"text": "a", "text_pair": "b"}, model="m")
    assert [item.label for item in found] == ["glad", "sad"]


def test_entities_are_typed_with_and_without_aggregation() -> None:
    assert client_of(ScriptedServer([_answer([ADA])])).tag("Ada", model="m") == [Entity("NAME", 0.5, "Ada", 0, 3)]
    server = ScriptedServer([_answer([TOKEN], [])])
    found = client_of(server).tag(["Ada", "nobody"], model="m", aggregation_strategy="none")
    assert found == [[Entity("B-NAME", 0.5, "ada", 0, 3, index=1)], []]
    assert server.requests[0].url.path == "/models/m/token-classification"
    assert _body(server.requests[0])["parameters"] == {"aggregation_strategy": "none"}  # nothing is ever cut


def test_many_inputs_are_one_job() -> None:
    server = ScriptedServer(_as_job(_item(0, GLAD), _item(1, GLAD), _item(2, GLAD[:1])))
    found = client_of(server).classify(["a", ("b", "c"), "d"], model="m", top_k=2, as_job=True)
    assert [len(labels) for labels in found] == [2, 2, 1]
    sent = _body(server.requests[0])
    assert sent["input"] == ["a", {"text": "b", "text_pair": "c"}, "d"]
    assert (sent["kind"], sent["options"]) == ("text-classification", {"top_k": 2})


def test_what_a_call_does_not_know_is_refused_by_a_job() -> None:
    assert not classify_request("a", "m", {"topk": 1}).is_call()
    assert not classify_request(["a"] * 65, "m", {}).is_call()
    assert not classify_request([("a" * 40_000, "a" * 40_000)], "m", {}).is_call()
    assert classify_request([("a", "b")], "m", {"threshold": 0.5}).is_call()


def test_failed_inputs_raise_with_the_partial_result_or_come_back() -> None:
    items = (_item(0, [ADA]), _failed(1))
    with pytest.raises(ItemErrors) as caught:
        client_of(ScriptedServer(_as_job(*items))).tag(["Ada", "b"], model="m", as_job=True)
    assert caught.value.partial == [[Entity("NAME", 0.5, "Ada", 0, 3)], None]
    outcome = client_of(ScriptedServer(_as_job(*items))).tag(["Ada", "b"], model="m", as_job=True, errors="return")
    assert isinstance(outcome, PartialResults)
    assert (list(outcome.errors), outcome.results[1]) == ([1], None)


def _refusal(code: str, param: str | None) -> httpx.Response:
    return httpx.Response(400, json={"error": "no", "error_type": code, "param": param})


def test_a_call_refused_for_one_input_goes_as_a_job_so_that_the_others_succeed() -> None:
    server = ScriptedServer([_refusal("context_length_exceeded", "inputs[1]"), *_as_job(*[_item(0, GLAD), _failed(1)])])
    outcome = client_of(server).classify(["a", "b"], model="m", truncate="error", errors="return")
    assert list(outcome.errors) == [1]
    assert _body(server.requests[1])["options"] == {"truncate": "error"}


def test_a_refusal_in_huggingfaces_shape_keeps_code_and_field() -> None:
    server = ScriptedServer([_refusal("model_has_no_head", "model")])
    with pytest.raises(OndolAPIError, match="no") as caught:
        client_of(server).tag("a", model="m")
    assert (caught.value.code, caught.value.param) == ("model_has_no_head", "model")


@pytest.mark.parametrize("answer", [{}, [], [[{"label": "a"}]], [["a"]]], ids=str)
def test_an_answer_that_is_none_is_told_so(answer: Any) -> None:
    with pytest.raises(OndolError, match=r"does not hold|not label scores"):
        client_of(ScriptedServer([httpx.Response(200, json=answer)])).classify("a", model="m")


@pytest.mark.parametrize(
    "inputs", [[], [1], ["a", None], [("a", "b", "c")], {"text": "a"}, [{"text": "a", "pair": "b"}]]
)
def test_what_is_neither_text_nor_pair_is_refused_before_anything_is_sent(inputs: Any) -> None:
    with pytest.raises(OndolError):
        client_of(ScriptedServer([])).classify(inputs, model="m")


@pytest.mark.parametrize("model", ["org/name", "..", "Upper", ""])
def test_what_is_no_model_reference_is_refused_before_anything_is_sent(model: str) -> None:
    for method in ("classify", "tag"):
        with pytest.raises(OndolError, match="model reference"):
            getattr(client_of(ScriptedServer([])), method)("a", model=model)


def test_labels_are_not_vectors() -> None:
    refused = httpx.Response(406, json=error_json("not_acceptable", "no npy", "Accept"))
    result = httpx.Response(200, json=_item(0, GLAD))
    with pytest.raises(OndolError, match="labels or entities"):
        client_of(ScriptedServer([refused, result])).jobs.vectors("job_1")
