"""CSV and TSV are read as RFC 4180 has them, and every cell is the string that stands there."""

from __future__ import annotations

import pytest

from ondol.contract.errors import InvalidPayload
from tests.training_data.conftest import Read, csv_of, message_of
from workers.training.data.examples import TextRows
from workers.training.data.table import MAX_CELL_CHARS

pytestmark = pytest.mark.unit


def rows_of(read: Read, name: str, content: str | bytes, **options: object) -> TextRows:
    rows = read(name, content, **options)
    assert isinstance(rows, TextRows)
    return rows


def test_words_that_other_readers_take_for_nothing_or_for_numbers_are_kept(read: Read) -> None:
    strange = ["NA", "null", "None", "nan", "007", "1e3", " 7 ", "true"]
    rows = rows_of(read, "train.csv", csv_of(*((value, value) for value in strange)))
    assert rows.texts == strange
    assert rows.labels == [(value,) for value in strange]


def test_a_byte_order_mark_is_not_part_of_the_first_column(read: Read) -> None:
    rows = rows_of(read, "train.csv", b"\xef\xbb\xbf" + "text,label\n온돌,좋음\n".encode())
    assert (rows.texts, rows.labels) == (["온돌"], [("좋음",)])


def test_quoted_cells_hold_commas_quotation_marks_and_line_ends(read: Read) -> None:
    rows = rows_of(read, "train.csv", 'text,label\r\n"one, ""two""\r\nthree",a\r\n\r\nfour,b\r\n')
    assert rows.texts == ['one, "two"\r\nthree', "four"]


def test_a_tsv_is_separated_by_tabs(read: Read) -> None:
    assert rows_of(read, "train.tsv", "text\tlabel\na, b\tx\n").texts == ["a, b"]


def test_a_row_of_the_wrong_width_is_named_by_row_and_line(read: Read) -> None:
    content = 'text,label\n"two\nlines",a\nb\nc,d,e\n'
    with pytest.raises(InvalidPayload) as caught:
        read("train.csv", content)
    assert "train.csv has 2 broken rows" in message_of(caught)
    assert "row 2 (line 4): too few cells: 1 cell, but the header has 2 columns" in message_of(caught)
    assert "row 3 (line 5): too many cells: 3 cells" in message_of(caught)
    assert "quotation marks" in message_of(caught)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('text,label\na,x\n"b,y\nc,z\n', ["row 2 (line 3)", "never closed"]),
        ('text,label\n"a"b,x\n', ["row 1 (line 2)", "double each quotation mark"]),
        ("text,label\na\rb,x\n", ["row 1 (line 2)", "carriage return", "LF or CRLF"]),
        ("text,label\na,x\nb\0,y\n", ["row 2 (line 3)", "byte 16 of the file is NUL"]),
        (f"text,label\n{'a' * (MAX_CELL_CHARS + 1)},x\n", ["row 1 (line 2)", "more than 1,000,000 characters"]),
        ('"text,label\na,x\n', ["train.csv has an unreadable header (line 1)", "never closed"]),
        ("text,text,label\na,b,c\n", ["more than one column 'text'", "rename"]),
        ("text;label\na;x\n", ["separated by semicolons, not by commas", ".csv"]),
        ("text\tlabel\na\tx\n", ["separated by tabs", ".tsv"]),
        ("text,label\n", ["has a header, but no rows"]),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place_and_a_remedy(read: Read, content: str, words: list[str]) -> None:
    with pytest.raises(InvalidPayload) as caught:
        read("train.csv", content)
    assert message_of(caught).startswith("train.csv")
    assert [word for word in words if word not in message_of(caught)] == []
    assert caught.value.param == "options.train_file"
