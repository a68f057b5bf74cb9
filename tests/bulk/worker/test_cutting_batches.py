"""Lines of OpenAI's batch format become inputs under their custom_id; a line that cannot be run fails alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.bulk.worker.conftest import Cut, CutFile, json_lines, refusal
from workers.sharding.plan import BatchFormat

pytestmark = pytest.mark.unit

URL = "/v1/embeddings"
BATCH = BatchFormat(URL, {"model": "tiny", "dimensions": 8, "user": "ann"})


def line(custom_id: object, value: object, **fields: Any) -> dict[str, Any]:
    """One request; `fields` replace those of the request, and `body` adds to its body."""
    body = {"model": "tiny", "dimensions": 8, "input": value} | fields.pop("body", {})
    return {"custom_id": custom_id, "method": "POST", "url": URL, "body": body} | fields


def cut_batch(cut: Cut, *lines: object, **fields: Any) -> CutFile:
    return cut("batch.jsonl", json_lines(*lines), batch=BATCH, **fields)


def test_every_input_bears_the_custom_id_of_its_line(cut: Cut) -> None:
    found = cut_batch(cut, line("a", "one"), line("b", ["two", "three"]), line("c", "four"))
    assert found.inputs == ["one", "two", "three", "four"]
    assert found.ids == ["a", "b", "b", "c"]
    assert found.report.num_refused == 0


def test_the_inputs_of_a_line_stay_in_one_shard(cut: Cut) -> None:
    found = cut_batch(cut, line("a", "x" * 10), line("b", ["y" * 10] * 3), line("c", "z"), max_tokens=24)
    assert [payload["ids"] for payload in found.payloads] == [["a"], ["b", "b", "b"], ["c"]]


def test_token_ids_and_texts_are_in_shards_of_their_own(cut: Cut) -> None:
    found = cut_batch(cut, line("a", [5, 6, 7]), line("b", [[8], [9, 9]]), line("c", "text"), line("d", [1]))
    assert [payload["inputs"] for payload in found.payloads] == [[[5, 6, 7], [8], [9, 9]], ["text"], [[1]]]
    assert [one.estimated_tokens for one in found.index] == [6, 6, 1]


def test_a_refused_line_beside_token_ids_has_token_ids_in_its_place(cut: Cut) -> None:
    found = cut_batch(cut, line("a", ""), line("b", [5]), line("c", []))
    assert found.inputs == [[0], [5], [0]]
    assert set(found.errors) == {0, 2}


def test_a_line_that_cannot_be_run_fails_alone(cut: Cut) -> None:
    lines = [
        json.dumps(line("good", "one")),
        '{"custom_id": "half',
        json.dumps(line(None, "x")),
        json.dumps(line("good", "x")),
        json.dumps(line("get", "x", method="GET")),
        json.dumps(line("chat", "x", url="/v1/chat/completions")),
        json.dumps(line("other", "x", body={"model": "large", "encoding_format": "base64"})),
        json.dumps(line("empty", [])),
        json.dumps(line("number", 7)),
        "[1]",
        "",
        json.dumps(line("bodiless", "x") | {"body": 3}),
        '{"custom_id": "\\ud800", "method": "POST"}',
        '{"custom_id": "nan", "method": NaN}',
        json.dumps(line("last", "two")),
    ]
    found = cut("batch.jsonl", "\n".join(lines), batch=BATCH)
    assert found.ids == [
        *("good", "line:2", "line:3", "good", "get", "chat", "other", "empty", "number", "line:10", "bodiless"),
        *("line:13", "line:14", "last"),
    ]
    assert [code for code, _ in found.errors.values()] == [
        *("invalid_json_line", "missing_custom_id", "duplicate_custom_id", "invalid_method", "mismatched_url"),
        *("mismatched_body", "invalid_payload", "invalid_payload", "invalid_json_line", "invalid_payload"),
        *("invalid_json_line", "invalid_json_line"),
    ]
    assert (found.inputs[0], found.inputs[-1]) == ("one", "two")
    message = found.errors[6][1]
    assert message.startswith("body differs from the first line's in 'encoding_format', 'model';")
    assert found.report.num_refused == 12


def test_who_asks_may_differ_from_line_to_line(cut: Cut) -> None:
    assert not cut_batch(cut, line("a", "x", body={"user": "bea"}), line("b", "y", body={"user": None})).errors


def test_one_and_true_are_not_the_same_option(cut: Cut) -> None:
    batch = BatchFormat(URL, {"model": "tiny", "dimensions": 1})
    found = cut(
        "b.jsonl",
        json_lines(line("a", "x", body={"dimensions": 1}), line("b", "y", body={"dimensions": True})),
        batch=batch,
    )
    assert {place: code for place, (code, _) in found.errors.items()} == {1: "mismatched_body"}


def test_a_file_without_a_line_that_can_be_run_is_refused(cut: Cut) -> None:
    error = refusal(cut, "batch.jsonl", json_lines(line("a", []), line("b", [])), batch=BATCH)
    assert error.message.startswith("batch.jsonl has no input that can be run: body.input")
    assert "has no lines" in refusal(cut, "batch.jsonl", "\n", batch=BATCH).message


def test_a_file_in_another_encoding_is_refused(cut: Cut) -> None:
    error = refusal(cut, "batch.jsonl", '{"custom_id": "온돌"}\n'.encode("cp949"), batch=BATCH)
    assert error.message.startswith("batch.jsonl is not readable: line 1: byte 15 of the file")
    assert error.param == "input_file"
