"""JSON lines, JSON lists and OpenAI's chats: values are kept as they are written, and each broken line is named."""

from __future__ import annotations

import json

import pytest

from ondol.contract.errors import InvalidPayload
from tests.training_data.conftest import Read, json_lines, message_of
from workers.training.data.examples import TextRows

pytestmark = pytest.mark.unit


def rows_of(read: Read, name: str, content: str, **options: object) -> TextRows:
    rows = read(name, content, **options)
    assert isinstance(rows, TextRows)
    return rows


def chat(user: object, assistant: object, *more: dict[str, object]) -> dict[str, object]:
    return {"messages": [*more, {"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}


def test_numbers_and_booleans_are_the_strings_that_are_written(read: Read) -> None:
    content = (
        '{"text": 7, "label": 1.50}\n\n{"text": "b", "label": true}\n{"text": "c", "label": 10000000000000000001}\n'
    )
    rows = rows_of(read, "train.jsonl", content)
    assert rows.texts == ["7", "b", "c"]
    assert rows.labels == [("1.50",), ("true",), ("10000000000000000001",)]


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_a_json_list_is_read_like_lines(read: Read, name: str) -> None:
    content = json.dumps([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], indent=1)
    assert rows_of(read, name, content).texts == ["a", "b"]


def test_a_break_in_a_json_list_is_named_by_row_and_line(read: Read) -> None:
    with pytest.raises(InvalidPayload, match=r"train.json, row 2 \(line 3\): not JSON: .* at line 3"):
        read("train.json", '[\n {"text": "a", "label": "x"},\n {"text": "b" "label": "y"}\n]')


def test_a_chat_is_a_text_and_its_label(read: Read) -> None:
    parts = [{"type": "text", "text": "온돌이 "}, {"type": "text", "text": "좋다"}]
    rows = rows_of(
        read, "chat.jsonl", json_lines(chat("cold", "bad"), chat(parts, "good", {"role": "system", "content": "Rate."}))
    )
    assert rows.texts == ["cold", "온돌이 좋다"]
    assert rows.labels == [("bad",), ("good",)]
    assert rows.num_system_messages == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"text": "b", "label": "y"', "not JSON: Expecting"),
        ('["b", "y"]', "is a list, not an object"),
        ('{"text": "b", "text": "c", "label": "y"}', "the key 'text' stands twice"),
        ('{"text": "b", "label": NaN}', "NaN is not a JSON value"),
        ('{"text": null, "label": "y"}', "column 'text': is null; write a string"),
        ('{"text": "b", "label": null}', "column 'label': is null"),
        ('{"text": "b"}', "column 'label': is missing in this row"),
        ('{"text": ["b"], "label": "y"}', "column 'text': is a list, not a string"),
        ('{"text": " ", "label": "y"}', "column 'text': is empty; write a text, or delete the row"),
        ('{"text": "b", "label": ""}', "column 'label': has an empty label"),
        ('{"text": "b", "label": "y", "text_pair": "c"}', "column 'text_pair': is in this row, but not in the first"),
        (r'{"text": "b \ud83d", "label": "y"}', "half of a character"),
        ('{"text": ' + "[" * 100_000 + "}", "nested too deeply"),
    ],
)
def test_a_broken_line_is_named(read: Read, row: str, words: str) -> None:
    with pytest.raises(InvalidPayload) as caught:
        read("train.jsonl", f'{{"text": "a", "label": "x"}}\n\n{row}\n')
    assert message_of(caught).startswith("train.jsonl, row 2 (line 3)")
    assert words in message_of(caught)


def test_of_many_broken_lines_the_first_five_are_named_and_all_counted(read: Read) -> None:
    with pytest.raises(InvalidPayload) as caught:
        read("train.jsonl", '{"text": "a", "label": "x"}\n' + "broken\n" * 1_306)
    assert "train.jsonl has 1,306 broken rows; the first 5:" in message_of(caught)
    assert message_of(caught).count("not JSON") == 5
    assert "row 6 (line 6)" in message_of(caught)
    assert "row 7 " not in message_of(caught)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hello", "is not a list of"),
        ([{"role": "user", "content": "a"}], "has no assistant message"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "more than one user message"),
        ([{"role": "tool", "content": "a"}], "has a message of role 'tool'"),
        ([{"role": "user", "content": None}], "whose content is missing or null"),
    ],
)
def test_a_chat_that_is_no_example_is_named(read: Read, messages: object, words: str) -> None:
    with pytest.raises(InvalidPayload) as caught:
        read("chat.jsonl", json_lines(chat("a", "x"), {"messages": messages}))
    assert "chat.jsonl, row 2 (line 2), column 'messages'" in message_of(caught)
    assert words in message_of(caught)
