"""Which task a file is for, and which of its columns are used."""

from __future__ import annotations

import pytest

from ondol.contract.errors import InvalidPayload
from tests.training_data.conftest import Read, json_lines, message_of
from workers.training.data.examples import TextRows, TokenRows

pytestmark = pytest.mark.unit

ENTITY = {"start": 0, "end": 1, "label": "X"}


@pytest.mark.parametrize(
    ("row", "options", "columns"),
    [
        ({"id": 1, "text": "a", "label": "x"}, {}, {"text": "text", "label": "label"}),
        (
            {"text": "a", "text_pair": "b", "label": "x"},
            {},
            {"text": "text", "text_pair": "text_pair", "label": "label"},
        ),
        ({"question": "a", "label": "x"}, {"columns": {"text": "question"}}, {"text": "question", "label": "label"}),
        ({"id": 1, "tokens": ["a"], "tags": ["O"]}, {}, {"tokens": "tokens", "tags": "tags"}),
        ({"tokens": ["a"], "ner": ["O"]}, {"columns": {"tags": "ner"}}, {"tokens": "tokens", "tags": "ner"}),
        ({"text": "a", "entities": [ENTITY]}, {}, {"text": "text", "entities": "entities"}),
        (
            {"s": "a", "spans": [ENTITY]},
            {"columns": {"text": "s", "entities": "spans"}},
            {"text": "s", "entities": "spans"},
        ),
        (
            {"text": "a", "label": "x", "tokens": ["a"], "tags": ["O"]},
            {"task": "token-classification"},
            {"tokens": "tokens", "tags": "tags"},
        ),
    ],
)
def test_columns_are_found_by_name_or_by_option(
    read: Read, row: dict[str, object], options: dict[str, object], columns: dict[str, str]
) -> None:
    rows = read("train.jsonl", json_lines(row), **options)
    assert rows.columns == columns
    assert isinstance(rows, TokenRows if {"tags", "entities"} & set(columns) else TextRows)


@pytest.mark.parametrize(
    ("row", "options", "words", "param"),
    [
        (
            {"text": "a", "class": "x"},
            {},
            ["does not show what to train", "'class', 'text'", "options.columns"],
            "train_file",
        ),
        (
            {"text": "a", "class": "x"},
            {"task": "text-classification"},
            ["has no column 'label'; it has 'text', 'class'", "rename one to 'label'", "options.columns.label"],
            "train_file",
        ),
        (
            {"text": "a", "label": "x"},
            {"columns": {"text": "body"}},
            ["has no column 'body', which options.columns.text names; it has 'text', 'label'"],
            "columns.text",
        ),
        (
            {"text": "a", "label": "x"},
            {"columns": {"text": "label"}},
            ["one column cannot play two parts", "text = 'label'"],
            "columns",
        ),
        ({"text": "a", "label": "x", "entities": []}, {}, ["columns of two tasks", "set options.task"], "task"),
        (
            {"text": "a", "label": "x"},
            {"columns": {"tags": "label"}, "task": "text-classification"},
            ["columns.tags belongs to token-classification"],
            "columns.tags",
        ),
        (
            {"tokens": ["a"], "tags": ["O"]},
            {"columns": {"tags": "tags"}, "problem_type": "regression"},
            ["is for token-classification", "leave both out"],
            "problem_type",
        ),
        (
            {"tokens": ["a"]},
            {"task": "token-classification"},
            ["needs tokens and tags", "It has 'tokens'"],
            "train_file",
        ),
    ],
)
def test_columns_that_do_not_fit_are_named_with_those_that_are_there(
    read: Read, row: dict[str, object], options: dict[str, object], words: list[str], param: str
) -> None:
    with pytest.raises(InvalidPayload) as caught:
        read("train.jsonl", json_lines(row), **options)
    assert [word for word in words if word not in message_of(caught)] == []
    assert caught.value.param == f"options.{param}"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.csv", b"", "is empty; upload a file with rows"),
        ("train.jsonl", b"\xef\xbb\xbf\n \n", "is empty"),
        ("train.txt", b"text,label\n", "ends in '.txt'; use .csv, .tsv, .jsonl, .json, .parquet"),
        ("train", b"text,label\n", "has no ending"),
        ("train.csv", b"PAR1....", "is a Parquet file, but its name ends in .csv"),
        ("train.parquet", b"text,label\n", "is no Parquet file"),
        ("train.csv", b"\x1f\x8b\x08", "is compressed with gzip; decompress it first"),
        ("train.csv", b"PK\x03\x04", "is a zip or an Excel file; save it as CSV (UTF-8)"),
        ("train.csv", "text,label\n".encode("utf-16"), "is UTF-16, not UTF-8"),
        ("train.json", b"[]", "has no row"),
    ],
)
def test_a_file_of_another_kind_is_said_to_be_one(read: Read, name: str, content: bytes, words: str) -> None:
    with pytest.raises(InvalidPayload) as caught:
        read(name, content)
    assert message_of(caught).startswith(f"{name} ")
    assert words in message_of(caught)
