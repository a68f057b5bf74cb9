"""Entities equal the Hugging Face pipeline's: every strategy, every family of tokenizers, whole texts and windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ondol.contract.errors import InvalidPayload
from ondol.contract.payloads import TokenClassificationOptions
from tests.classification.local_runs import answered, begun, hugging_face, logits_of, pipeline_of
from tests.classification.models import MAX_LENGTH, make_tagger
from tests.classification.texts import LONG, SHORT
from workers.entities import Entity, to_utf16

pytestmark = pytest.mark.unit

SCORE_TOLERANCE = 1e-5
"""The pipeline pads the last window; nothing else differs."""
STRATEGIES = ("none", "simple", "first", "average", "max")


@pytest.fixture(scope="module", params=["wordpiece", "unigram", "bytes"])
def tagger(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model over each family of tokenizers."""
    return make_tagger(tmp_path_factory.mktemp("tagger") / request.param, request.param)


def assert_same(found: list[Any] | None, expected: list[list[Entity]]) -> None:
    """Equal entities in everything, and in their scores but for rounding."""
    assert found is not None
    assert [_without_scores(entities) for entities in found] == [_without_scores(entities) for entities in expected]
    for mine, theirs in zip(found, expected, strict=True):
        scores, wanted = ([entity["score"] for entity in entities] for entities in (mine, theirs))
        np.testing.assert_allclose(scores, wanted, rtol=0, atol=SCORE_TOLERANCE)


def _without_scores(entities: list[Entity]) -> list[Entity]:
    return [{key: value for key, value in entity.items() if key != "score"} for entity in entities]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_texts_that_fit(tagger: Path, strategy: Any) -> None:
    expected = hugging_face(tagger, SHORT, aggregation_strategy=strategy)
    assert any(expected), "a model that finds nothing proves nothing"
    found = answered(tagger, TokenClassificationOptions(aggregation_strategy=strategy), SHORT)
    assert_same(found.outputs, expected)
    assert not found.errors


@pytest.mark.parametrize(
    ("strategy", "stride"), [("simple", 0), ("simple", 11), ("first", 5), ("average", 23), ("max", 11)]
)
def test_windows_of_long_texts(tagger: Path, strategy: Any, stride: int) -> None:
    options = TokenClassificationOptions(aggregation_strategy=strategy, stride=stride)
    texts = [LONG, SHORT[0]]
    found = answered(tagger, options, texts)
    assert_same(found.outputs, hugging_face(tagger, texts, aggregation_strategy=strategy, stride=stride))
    assert found.tokens[0] > MAX_LENGTH and found.truncated == [False] * 2


@pytest.mark.parametrize("ignored", [(), ("MISC", "PER"), ("B-LOC", "O")])
@pytest.mark.parametrize("strategy", ["none", "average"])
def test_what_is_ignored(tagger: Path, strategy: Any, ignored: tuple[str, ...]) -> None:
    options = TokenClassificationOptions(aggregation_strategy=strategy, ignore_labels=ignored)
    expected = hugging_face(tagger, SHORT, aggregation_strategy=strategy, ignore_labels=list(ignored))
    assert_same(answered(tagger, options, SHORT).outputs, expected)


def test_every_token_of_a_long_text_is_labelled_once(tagger: Path) -> None:
    options = TokenClassificationOptions(aggregation_strategy="none", ignore_labels=())
    [entities] = answered(tagger, options, [LONG]).outputs or []
    num_tokens = len(pipeline_of(tagger).tokenizer(LONG, verbose=False)["input_ids"])
    assert num_tokens > MAX_LENGTH
    assert [entity["index"] for entity in entities] == list(range(1, num_tokens - 1))


def test_neighbouring_windows_share_a_quarter(tagger: Path) -> None:
    first, second, *_ = begun(tagger, TokenClassificationOptions(), [LONG]).work.rows
    room = MAX_LENGTH - 2
    assert first.num_tokens == MAX_LENGTH
    np.testing.assert_array_equal(first.ids[1 + room - room // 4 : -1], second.ids[1 : 1 + room // 4])


def test_a_stride_that_leads_nowhere_is_refused(tagger: Path) -> None:
    with pytest.raises(InvalidPayload, match="would not move them on") as refused:
        begun(tagger, TokenClassificationOptions(max_length=8, stride=6), ["warm"])
    assert refused.value.param == "options.stride"


def test_offsets_count_utf16_units_on_request(tagger: Path) -> None:
    text = SHORT[2]
    points = answered(tagger, TokenClassificationOptions(ignore_labels=()), [text]).outputs or []
    units = answered(tagger, TokenClassificationOptions(ignore_labels=(), offset_unit="utf16"), [text]).outputs or []
    encoded = text.encode("utf-16-le")
    for point, unit in zip(points[0], units[0], strict=True):
        meant = text[point["start"] : point["end"]]
        assert encoded[2 * unit["start"] : 2 * unit["end"]].decode("utf-16-le") == meant
    assert points[0][-1]["end"] < units[0][-1]["end"]


def test_ascii_offsets_are_the_same_in_both_units() -> None:
    entities: list[Entity] = [{"start": 2, "end": 4}]
    to_utf16(entities, "no astral")
    assert entities == [{"start": 2, "end": 4}]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_numbers_that_are_not_finite_fail_their_own_text_alone(tagger: Path, strategy: Any) -> None:
    task = begun(tagger, TokenClassificationOptions(aggregation_strategy=strategy), [SHORT[0], SHORT[1]])
    good, bad = task.work.rows
    task.work.settle(good, logits_of(tagger, good), None)
    task.work.settle(bad, np.full((bad.num_tokens, 7), np.nan, dtype=np.float32), None)
    found = task.answer()
    assert set(found.errors) == {1} and "not finite" in found.errors[1].message
    assert found.outputs is not None and found.outputs[0] and found.outputs[1] == []


def test_a_stored_result_is_json_of_entities(tagger: Path) -> None:
    task = begun(tagger, TokenClassificationOptions(), SHORT)
    for row in task.work.rows:
        task.work.settle(row, logits_of(tagger, row), None)
    found = task.answer()
    summary = task.summary(found)
    assert json.loads(task.data(found)) == found.outputs
    assert {key: summary[key] for key in ("kind", "format", "shape")} == {
        "kind": "token-classification",
        "format": "json",
        "shape": None,
    }
    assert summary["num_tokens"] == sum(found.tokens)
    assert np.shape(found.vectors) == (len(SHORT), 0)
