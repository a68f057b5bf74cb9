"""Scores equal the Hugging Face pipeline's: texts and pairs, every function, and what is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ondol.contract.errors import InvalidPayload, WorkerLost
from ondol.contract.jobs import Pair
from ondol.contract.payloads import TextClassificationOptions
from tests.classification.local_runs import answered, begun, hugging_face, logits_of, pipeline_of
from tests.classification.models import MAX_LENGTH, make_classifier
from tests.classification.texts import LONG, PAIRS, SHORT
from workers.rows import FloatArray
from workers.text_pairs import longest_first

pytestmark = pytest.mark.unit

TOLERANCE = 1e-6
"""The same logits, and the same arithmetic."""
INPUTS: list[Any] = [*SHORT, *PAIRS, LONG]
KINDS: dict[str, tuple[tuple[str, ...], str | None, str]] = {
    "single-label": (("bad", "good", "so-so"), "single_label_classification", "softmax"),
    "unstated": (("no", "yes"), None, "softmax"),
    "multi-label": (("warm", "cold", "wet"), "multi_label_classification", "sigmoid"),
    "one-label": (("spam",), None, "sigmoid"),
    "regression": (("stars",), "regression", "none"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A classifier of each problem type."""
    place = tmp_path_factory.mktemp("classifiers")
    return {
        name: make_classifier(place / name, labels, problem_type=problem_type, seed=i)
        for i, (name, (labels, problem_type, _)) in enumerate(KINDS.items())
    }


def expected_scores(folder: Path, inputs: list[Any], labels: tuple[str, ...], **options: Any) -> FloatArray:
    """Scores [N, C] of the live pipeline, one input at a time."""
    options = {"truncation": True, "top_k": None} | options
    found = [hugging_face(folder, item, **options) for item in inputs]
    return np.array([[_score(scores, label) for label in labels] for scores in found], dtype=np.float32)


def _score(scores: list[dict[str, Any]], label: str) -> float:
    return float(next(item["score"] for item in scores if item["label"] == label))


@pytest.mark.parametrize("name", KINDS)
def test_scores_of_every_problem_type(folders: dict[str, Path], name: str) -> None:
    labels, _, function = KINDS[name]
    found = answered(folders[name], TextClassificationOptions(), INPUTS)
    assert (found.about["function"], found.about["labels"]) == (function, list(labels))
    np.testing.assert_allclose(found.vectors, expected_scores(folders[name], INPUTS, labels), rtol=0, atol=TOLERANCE)
    assert not found.errors


@pytest.mark.parametrize("function", ["sigmoid", "softmax", "none"])
def test_another_function_on_request(folders: dict[str, Path], function: Any) -> None:
    labels = KINDS["single-label"][0]
    options = TextClassificationOptions(function_to_apply=function)
    expected = expected_scores(folders["single-label"], INPUTS, labels, function_to_apply=function)
    np.testing.assert_allclose(answered(folders["single-label"], options, INPUTS).vectors, expected, atol=TOLERANCE)


def test_extreme_logits_become_zeros_and_ones(folders: dict[str, Path]) -> None:
    task = begun(folders["multi-label"], TextClassificationOptions(), ["a"])
    task.work.settle(task.work.rows[0], np.array([-1e4, 1e4, 0], dtype=np.float32), None)
    np.testing.assert_array_equal(task.answer().vectors, [[0.0, 1.0, 0.5]])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_length", [6, 13, MAX_LENGTH])
def test_rows_are_cut_as_the_tokenizer_cuts_them(folders: dict[str, Path], side: Any, max_length: int) -> None:
    folder = folders["single-label"]
    options = TextClassificationOptions(truncate=side, max_length=max_length)
    task = begun(folder, options, INPUTS)
    tokenizer = pipeline_of(folder).tokenizer
    kept_side, tokenizer.truncation_side = tokenizer.truncation_side, side
    try:
        for item, row in zip(INPUTS, task.work.rows, strict=True):
            texts = item if isinstance(item, dict) else {"text": item}
            expected = tokenizer(**texts, truncation="longest_first", max_length=max_length)
            assert row.ids.tolist() == expected["input_ids"]
            type_ids = [0] * row.num_tokens if row.type_ids is None else row.type_ids.tolist()
            assert type_ids == expected["token_type_ids"]
    finally:
        tokenizer.truncation_side = kept_side
    whole = [len(tokenizer(**(item if isinstance(item, dict) else {"text": item}))["input_ids"]) for item in INPUTS]
    assert task.tokenized.truncated == [length > max_length for length in whole]
    assert task.tokenized.tokens == [min(length, max_length) for length in whole]


def test_a_pair_is_halved_where_even_the_shorter_text_is_too_long() -> None:
    assert longest_first(30, 40, 21) == (10, 11)
    assert longest_first(40, 30, 21) == (11, 10)
    assert longest_first(3, 40, 21) == (3, 18)
    assert longest_first(3, 4, 21) == (3, 18), "more than there is: nothing is cut"


def test_texts_that_may_not_be_cut_fail_alone(folders: dict[str, Path]) -> None:
    inputs: list[str | Pair] = ["a", PAIRS[4], LONG, PAIRS[0]]
    found = answered(folders["single-label"], TextClassificationOptions(truncate="error"), inputs)
    assert {i: (error.code, error.param) for i, error in found.errors.items()} == {
        1: ("context_length_exceeded", "input[1]"),
        2: ("context_length_exceeded", "input[2]"),
    }
    scores = np.asarray(found.vectors)
    assert not scores[[1, 2]].any(), "a failed input has no score, not even 0.5"
    np.testing.assert_allclose(scores[[0, 3]].sum(axis=1), 1, atol=1e-6)
    assert found.tokens[1] > MAX_LENGTH and not any(found.truncated)


def test_an_error_of_a_row_is_the_error_of_its_input(folders: dict[str, Path]) -> None:
    folder = folders["multi-label"]
    task = begun(folder, TextClassificationOptions(), ["a", "b", "c"])
    lost, ruined, good = task.work.rows
    task.work.settle(lost, None, WorkerLost("the device process died"))
    task.work.settle(ruined, np.array([1, np.inf, 0], dtype=np.float32), None)
    task.work.settle(good, logits_of(folder, good), None)
    found = task.answer()
    assert found.errors[0].code == "worker_lost"
    assert "not finite" in found.errors[1].message
    assert sorted(found.errors) == [0, 1]
    assert found.num_tokens == found.tokens[2]


@pytest.mark.parametrize("max_length", [2, 1])
def test_a_length_without_room_is_refused(folders: dict[str, Path], max_length: int) -> None:
    with pytest.raises(InvalidPayload, match="leaves no room") as refused:
        begun(folders["unstated"], TextClassificationOptions(max_length=max_length), ["warm"])
    assert refused.value.param == "options.max_length"


def test_a_threshold_is_shown_where_labels_are_independent_or_it_is_asked_for(tmp_path: Path) -> None:
    single = make_classifier(tmp_path / "single", ("no", "yes"))
    several = make_classifier(tmp_path / "several", ("a", "b"), problem_type="multi_label_classification")
    tuned = make_classifier(tmp_path / "tuned", ("a", "b"), problem_type="multi_label_classification", threshold=0.3)

    def threshold(folder: Path, **options: Any) -> Any:
        return answered(folder, TextClassificationOptions(**options), ["warm"]).about["threshold"]

    assert threshold(single) is None
    assert threshold(single, threshold=0.7) == 0.7
    assert threshold(several) == 0.5
    assert threshold(tuned) == 0.3
    assert threshold(tuned, threshold=0.0) == 0.0


def test_a_stored_result_is_float32_scores_and_how_to_read_them(folders: dict[str, Path]) -> None:
    folder = folders["single-label"]
    task = begun(folder, TextClassificationOptions(top_k=2), ["a", LONG])
    for row in task.work.rows:
        task.work.settle(row, logits_of(folder, row), None)
    found = task.answer()
    summary = task.summary(found)
    stored = np.frombuffer(task.data(found), dtype="<f4").reshape(summary["shape"])
    np.testing.assert_array_equal(stored, found.vectors)
    assert summary == {
        "kind": "text-classification",
        "shape": [2, 3],
        "labels": ["bad", "good", "so-so"],
        "top_k": 2,
        "function": "softmax",
        "threshold": None,
        "tokens": found.tokens,
        "truncated": [1],
        "errors": {},
        "model": "single-label:1",
        "dtype": "float32",
        "engine": "torch",
        "num_tokens": sum(found.tokens),
    }
