"""What people upload by mistake: the sentence names the file, the row, the column, and what to do."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

from ondol.contract.errors import InvalidPayload
from tests.training_data.conftest import Load, Read, csv_of, json_lines

pytestmark = pytest.mark.unit

GOOD = ("train.csv", csv_of(*((f"text {i}", "xy"[i % 2]) for i in range(20))))
GOOD_TAGS = ("train.jsonl", json_lines({"tokens": ["a", "b"], "tags": ["B-X", "O"]}, {"tokens": ["c"], "tags": ["O"]}))


def many_rows(broken: str) -> str:
    rows = [f"text {i},{'xy'[i % 2]}" for i in range(1, 2_000)]
    rows[1_306] = broken
    return "\n".join(["text,label", *rows]) + "\n"


def failure(load: Load, *files: Any, **options: Any) -> InvalidPayload:
    with pytest.raises(InvalidPayload) as caught:
        load(*files, **options)
    return caught.value


def test_a_missing_column(load: Load) -> None:
    error = failure(load, ("train.csv", "text,class\na,x\n"), task="text-classification")
    assert error.message == (
        "train.csv has no column 'label'; it has 'text', 'class': rename one to 'label', or name it in "
        "options.columns.label"
    )
    assert error.code == "invalid_payload"


def test_a_label_that_only_the_validation_file_has(load: Load) -> None:
    error = failure(load, GOOD, ("dev.csv", csv_of(("a", "x"), ("b", "z"))))
    assert error.message == (
        "dev.csv, row 2, column 'label': label 'z' is not in train.csv; add rows of it there, or correct or remove "
        "this row"
    )
    assert error.param == "options.validation_file"


def test_a_tag_that_only_the_validation_file_has(load: Load) -> None:
    error = failure(load, GOOD_TAGS, ("dev.jsonl", json_lines({"tokens": ["a"], "tags": ["B-Y"]})))
    assert "dev.jsonl, row 1, column 'tags': label 'B-Y' is not in train.jsonl" in error.message


def test_a_broken_row_far_into_the_file(load: Load) -> None:
    error = failure(load, ("train.csv", many_rows("no comma here")))
    assert error.message == (
        "train.csv, row 1,307 (line 1,308): too few cells: 1 cell, but the header has 2 columns; put a cell that holds "
        "a comma into quotation marks, and leave no cell out"
    )


def test_another_encoding(load: Load) -> None:
    error = failure(load, ("train.csv", "text,label\na,x\n온돌이 따뜻하다,y\n".encode("cp949")))
    assert error.message == (
        "train.csv, row 2 (line 3): byte 15 of the file is 0xbf: the file is not UTF-8 (Korean files from Windows "
        "often are CP949); save it as UTF-8"
    )


def test_another_encoding_in_the_header_or_in_a_json_list(load: Load) -> None:
    header = failure(load, ("train.csv", "텍스트,label\na,x\n".encode("cp949")))
    assert "train.csv has an unreadable header (line 1): byte 0 of the file is 0xc5" in header.message
    listed = failure(load, ("train.json", '[\n{"text": "온돌", "label": "x"}]'.encode("cp949")))
    assert "train.json is not readable: line 2: byte 12 of the file" in listed.message


@pytest.mark.parametrize("content", ["", "\ufeff", "\n\n"])
def test_an_empty_file(load: Load, content: str) -> None:
    error = failure(load, ("train.csv", content))
    assert error.message == "train.csv is empty; upload a file with rows"


def test_an_empty_validation_file(load: Load) -> None:
    error = failure(load, GOOD, ("dev.csv", "text,label\n"))
    assert (error.message, error.param) == ("dev.csv has a header, but no rows; add some", "options.validation_file")


def test_one_class(load: Load) -> None:
    error = failure(load, ("train.csv", csv_of(("a", "x"), ("b", "x"))))
    assert error.message == ("train.csv has one class only, 'x'; add rows of another, or name the right label column")
    tags = failure(load, ("train.jsonl", json_lines({"tokens": ["a", "b"], "tags": ["O", "O"]})))
    assert "train.jsonl has one tag only, 'O'" in tags.message


def test_no_label_in_any_row(load: Load) -> None:
    error = failure(load, ("train.csv", "text,label\na,[]\nb,[]\n"))
    assert "train.csv has no label in any row" in error.message


def test_a_byte_order_mark_and_strings_like_na_and_007_are_no_mistakes(load: Load) -> None:
    content = "\ufeff" + csv_of(("NA", "007"), ("007", "NA"), ("null", "NA"), ("x", "007"))
    data = load(("train.csv", content), validation_split=0)
    assert data.labels == ["007", "NA"]
    assert [example.text for example in data.train] == ["NA", "007", "null", "x"]


def test_tags_and_tokens_of_different_length(load: Load) -> None:
    error = failure(load, ("train.jsonl", GOOD_TAGS[1] + json_lines({"tokens": ["a", "b"], "tags": ["O"]})))
    assert error.message == ("train.jsonl, row 3 (line 3), column 'tags': 1 tags for 2 tokens; give each token one tag")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"tokens": [], "tags": []}, "column 'tokens': is an empty list; delete the row"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "column 'tokens': token 1 (from 0) is empty"),
        ({"tokens": ["a", None], "tags": ["O", "O"]}, "column 'tokens': item 1 (from 0) is null, not a string"),
        ({"tokens": ["a"], "tags": [" "]}, "column 'tags': label 0 (from 0) is empty"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "column 'tokens': is not a JSON list"),
        ({"tokens": ["a"]}, "column 'tags': is missing in this row"),
    ],
)
def test_words_that_cannot_be_tagged(load: Load, row: dict[str, object], words: str) -> None:
    error = failure(load, ("train.jsonl", GOOD_TAGS[1] + json_lines(row)))
    assert error.message.startswith(f"train.jsonl, row 3 (line 3), {words}")


def test_overlapping_spans(load: Load) -> None:
    entities = [{"start": 0, "end": 3, "label": "LC"}, {"start": 2, "end": 4, "label": "OG"}]
    error = failure(load, ("ner.jsonl", json_lines({"text": "제주도청은", "entities": entities})))
    assert error.message == (
        "ner.jsonl, row 1 (line 1), column 'entities': entities overlap: '제주도' (0 to 3, LC) and '도청' (2 to 4, "
        "OG); keep one of them, a word can have one tag"
    )


def test_too_few_rows_to_hold_any_out(load: Load) -> None:
    error = failure(load, ("train.csv", csv_of(("a", "x"), ("b", "y"))))
    assert "train.csv has too few rows (2) to hold any out" in error.message
    assert "set validation_split to 0" in error.message


def test_files_of_which_one_has_pairs(load: Load) -> None:
    pairs = ("dev.csv", "text,text_pair,label\na,b,x\n")
    error = failure(load, GOOD, pairs)
    assert error.message == ("train.csv has no text_pair, but dev.csv has one; give both files the same columns")


@pytest.mark.parametrize(
    ("options", "words", "param"),
    [
        (
            {"hyperparameters": {"metric_for_best_model": "eval_f1"}},
            "has no metric 'eval_f1'; choose accuracy, f1_macro, f1_weighted, loss",
            "hyperparameters.metric_for_best_model",
        ),
        ({"max_length": 2_000}, "more than the 1,024 tokens that the base takes", "max_length"),
        ({"early_stopping": {}, "validation_split": 0}, "early_stopping needs validation rows", "early_stopping"),
        ({"class_weights": {"x": 1, "q": 2}}, "class_weights names 'q'", "class_weights"),
        (
            {"hyperparameters": {"label_smoothing_factor": 0.1}, "label_delimiter": "|"},
            "goes with one label a row",
            "hyperparameters.label_smoothing_factor",
        ),
    ],
)
def test_options_that_the_data_cannot_follow(load: Load, options: dict[str, Any], words: str, param: str) -> None:
    error = failure(load, GOOD, **options)
    assert words in error.message
    assert error.param == f"options.{param}"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", 'text,label\na,x\n"b,y\n'),
        ("train.csv", "text;label\na;x\n"),
        ("train.jsonl", '{"text": "a", "label": "x"}\n{"text": "b\0", "label": "y"}\n'),
        ("train.jsonl", '{"words": "a"}\n{"words": "b"}\n'),
    ],
)
def test_a_refused_file_is_closed_while_its_error_still_lives(read: Read, name: str, content: str) -> None:
    with pytest.raises(InvalidPayload) as caught:
        read(name, content)
    assert [file.path for file in psutil.Process().open_files() if file.path.endswith(name)] == []
    assert caught.value.param == "options.train_file"
