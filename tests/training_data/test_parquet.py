"""Parquet columns of text, numbers, dictionaries and lists are read; others are refused by name and type."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ondol.contract.errors import InvalidPayload
from tests.training_data.conftest import message_of, options_of
from workers.training.data.examples import Examples, TextRows, TokenRows
from workers.training.data.reading import read_examples

pytestmark = pytest.mark.unit


def read_table(folder: Path, table: pa.Table, **options: Any) -> Examples:
    path = folder / "train.parquet"
    pq.write_table(table, path, row_group_size=2)
    return read_examples(path, filename="train.parquet", options=options_of(**options))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_strings_of_every_kind_are_read_as_they_are(tmp_path: Path, kind: pa.DataType) -> None:
    values = ["NA", "007", "온돌"]
    rows = read_table(tmp_path, pa.table({"text": pa.array(values, kind), "label": pa.array(values, kind)}))
    assert isinstance(rows, TextRows)
    assert rows.texts == values
    assert rows.labels == [(value,) for value in values]


def test_numbers_are_labels_and_columns_that_are_not_used_may_be_anything(tmp_path: Path) -> None:
    times = pa.array([datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)] * 2)
    rows = read_table(tmp_path, pa.table({"text": ["a", "b"], "label": [7, 10], "at": times}))
    assert isinstance(rows, TextRows)
    assert rows.labels == [("7",), ("10",)]
    rows = read_table(tmp_path, pa.table({"text": ["a", "b"], "label": [0.5, 4]}), problem_type="regression")
    assert isinstance(rows, TextRows)
    assert rows.scores == [0.5, 4.0]


def test_lists_are_tags_and_labels_and_structs_are_entities(tmp_path: Path) -> None:
    words = pa.table({"tokens": [["온돌", "은"], ["a"]], "tags": [[1, 0], [0]]})
    rows = read_table(tmp_path, words)
    assert isinstance(rows, TokenRows)
    assert rows.tags == [["1", "0"], ["0"]]
    several = read_table(tmp_path, pa.table({"text": ["a", "b"], "label": [["x", "y"], []]}))
    assert isinstance(several, TextRows)
    assert several.labels == [("x", "y"), ()]
    marked = pa.table({"text": ["온돌은"], "entities": [[{"start": 0, "end": 2, "label": "THING"}]]})
    rows = read_table(tmp_path, marked)
    assert isinstance(rows, TokenRows)
    assert (rows.tokens, rows.tags) == ([["온돌", "은"]], [["B-THING", "O"]])


def test_another_type_is_refused_by_column_and_type(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "label": pa.array([datetime.date(2026, 1, 1)])})
    with pytest.raises(InvalidPayload, match=r"train.parquet has column 'label' of type date32.* cast it to string"):
        read_table(tmp_path, table)


def test_a_null_is_refused_by_row(tmp_path: Path) -> None:
    with pytest.raises(InvalidPayload, match=r"train.parquet, row 3, column 'label': is null"):
        read_table(tmp_path, pa.table({"text": ["a", "b", "c"], "label": ["x", "y", None]}))


def test_text_that_is_not_utf8_is_refused_by_row(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"".join(i.to_bytes(4, "little") for i in (0, 1, 2)))
    bad = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xb0")])
    with pytest.raises(InvalidPayload, match=r"train.parquet, row 2, column 'text': is not UTF-8"):
        read_table(tmp_path, pa.table({"text": bad, "label": ["x", "y"]}))


def test_a_damaged_file_is_said_to_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"text": ["a"], "label": ["x"]}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InvalidPayload) as caught:
        read_examples(path, filename="train.parquet", options=options_of())
    assert "train.parquet is not readable as Parquet" in message_of(caught)
