"""Texts with entities become words with BIO tags, and the words know where they stand."""

from __future__ import annotations

import pytest

from ondol.contract.errors import InvalidPayload
from tests.training_data.conftest import Load, Read, json_lines, message_of
from workers.training.data.entities import Entity, tagged_words
from workers.training.data.examples import TokenExample

pytestmark = pytest.mark.unit


def entity(start: object, end: object, label: object = "LC", **more: object) -> dict[str, object]:
    return {"start": start, "end": end, "label": label} | more


def test_an_entity_that_ends_inside_a_word_splits_it() -> None:
    text = "제주도는 늦은 오후부터 비."
    words, tags, spans = tagged_words(text, [Entity(0, 3, "LC"), Entity(8, 10, "TI")])
    assert words == ["제주도", "는", "늦은", "오후", "부터", "비", "."]
    assert tags == ["B-LC", "O", "O", "B-TI", "O", "O", "O"]
    assert [text[start:end] for start, end in spans] == words


def test_an_entity_of_several_words_begins_once_and_neighbours_begin_anew() -> None:
    words, tags, _ = tagged_words("St. John's, Newfoundland", [Entity(0, 10, "A"), Entity(10, 24, "A")])
    assert words == ["St", ".", "John", "'", "s", ",", "Newfoundland"]
    assert tags == ["B-A", "I-A", "I-A", "I-A", "I-A", "B-A", "I-A"]


def test_characters_beyond_the_first_plane_count_as_one_and_marks_stay_in_their_word() -> None:
    text = "🔥🔥 हिन्दी_x"
    words, tags, spans = tagged_words(text, [Entity(1, 2, "F"), Entity(3, 9, "L")])
    assert words == ["🔥", "🔥", "हिन्दी", "_", "x"]
    assert tags == ["O", "B-F", "B-L", "O", "O"]
    assert spans == [(0, 1), (1, 2), (3, 9), (9, 10), (10, 11)]


def test_examples_carry_text_and_places_and_both_tags_of_each_type_are_labels(load: Load) -> None:
    rows = json_lines(
        {"text": "서울은 멀다", "entities": [entity(0, 2, text="서울")]},
        {"text": "비", "entities": []},
    )
    data = load(("ner.jsonl", rows), validation_split=0)
    assert data.labels == ["B-LC", "I-LC", "O"]
    assert data.train == [
        TokenExample(["서울", "은", "멀다"], [0, 2, 2], "서울은 멀다", [(0, 2), (2, 3), (4, 6)]),
        TokenExample(["비"], [2], "비", [(0, 1)]),
    ]
    assert data.report.class_counts.train == {"B-LC": 1, "I-LC": 0, "O": 3}


def test_a_csv_cell_may_hold_entities_as_json(load: Load) -> None:
    cell = '"[{""start"": 0, ""end"": 2, ""label"": ""LC""}]"'
    data = load(("ner.csv", f"text,entities\n서울은,{cell}\n"), validation_split=0)
    assert data.labels == ["B-LC", "I-LC", "O"]


@pytest.mark.parametrize(
    ("entities", "words"),
    [
        ([entity(0, 2), entity(1, 3, "OG")], "entities overlap: '서울' (0 to 2, LC) and '울은' (1 to 3, OG); keep one"),
        ([entity(0, 7)], "entities[0] is from 0 to 7, but the text has 6 characters"),
        ([entity(2, 2)], "entities[0] is from 2 to 2"),
        ([entity(-1, 2)], "entities[0] is from -1 to 2"),
        ([entity(0, 2), entity(3, 4)], "entities[1] holds nothing but spaces"),
        ([entity(0, "2")], "entities[0].end is a string, not a whole number"),
        ([entity(0, 2.5)], "entities[0].end is the number '2.5', not a whole number"),
        ([{"start": 0, "label": "LC"}], "entities[0].end is missing"),
        ([entity(0, 2, "")], "entities[0] has no label"),
        ([[0, 2, "LC"]], "entities[0] is a list; write"),
        (
            [entity(0, 6, text="서울")],
            "says that its text is '서울', but 0 to 6 is '서울은 멀다'; offsets count code points",
        ),
        ({"LC": [0, 2]}, "is an object, not a list"),
        (None, "is null, not a list"),
    ],
)
def test_entities_that_cannot_be_are_named(read: Read, entities: object, words: str) -> None:
    rows = json_lines({"text": "비", "entities": []}, {"text": "서울은 멀다", "entities": entities})
    with pytest.raises(InvalidPayload) as caught:
        read("ner.jsonl", rows)
    assert message_of(caught).startswith("ner.jsonl, row 2 (line 2), column 'entities': ")
    assert words in message_of(caught)
