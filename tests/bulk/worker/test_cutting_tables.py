"""Rows of CSV, JSON and Parquet become inputs as they are written, in order, in shards within their bounds."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ondol.contract.inference_checks import TokenEstimate
from ondol.contract.kinds import JobKind
from ondol.contract.payloads import InputColumns
from tests.bulk.worker.conftest import ESTIMATE, Cut, MakePlan, json_lines, refusal
from workers.sharding.cut import cut_file
from workers.sharding.cutter import MAX_SHARDS

pytestmark = pytest.mark.unit

TEXTS = [f"warm floor {i}" for i in range(300)]
PAIRS = JobKind.TEXT_CLASSIFICATION


def csv_of(header: str, rows: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in (header, *rows))


def parquet_of(**columns: object) -> bytes:
    buffer = BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=100)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("texts.csv", csv_of("text", TEXTS)),
        ("texts.tsv", csv_of("id\ttext", (f"{i}\t{text}" for i, text in enumerate(TEXTS)))),
        ("texts.jsonl", json_lines(*({"text": text} for text in TEXTS))),
        ("texts.json", "[" + ",\n".join(json_lines({"text": text}).strip() for text in TEXTS) + "]"),
        ("texts.parquet", parquet_of(text=TEXTS)),
    ],
)
def test_every_format_gives_all_rows_in_order_within_the_tokens(cut: Cut, name: str, content: str | bytes) -> None:
    found = cut(name, content)
    assert found.inputs == TEXTS
    firsts = [shard.first_input for shard in found.index]
    assert firsts == [sum(one.num_inputs for one in found.index[:n]) for n in range(len(found.index))]
    assert all(shard.estimated_tokens <= 1_000 for shard in found.index)
    assert len(found.index) == found.report.num_shards > 1
    tokens = [ESTIMATE.of_text(len(text)) for text in TEXTS]
    assert sum(tokens) == found.report.estimated_tokens == sum(one.estimated_tokens for one in found.index)
    assert (found.report.num_inputs, found.report.num_refused) == (300, 0)


def test_words_that_other_readers_take_for_nothing_or_for_numbers_are_kept(cut: Cut) -> None:
    strange = ["NA", "null", "None", "007", "1e3", " 7 ", "true"]
    assert cut("texts.csv", csv_of("text", strange)).inputs == strange
    assert cut("texts.jsonl", '{"text": 007.50}\n'.replace("007", "7")).inputs == ["7.50"]


def test_texts_of_any_script_come_through_whole(cut: Cut) -> None:
    texts = ['온돌은 "따뜻하다", 정말\n', "tab\tand \U0001f525", "a\u2028b"]
    assert cut("texts.jsonl", json_lines(*({"text": text} for text in texts))).inputs == texts


def test_ids_are_kept_as_the_file_has_them(cut: Cut) -> None:
    rows = [{"id": value, "text": "x"} for value in ("a7", 7, "007", 1.5, None, 2**60)]
    assert cut("texts.jsonl", json_lines(*rows)).ids == ["a7", 7, "007", 1.5, None, 2**60]
    assert cut("texts.csv", "id,text\n007,x\n,y\n").ids == ["007", ""]
    assert cut("texts.parquet", parquet_of(id=[7, 8], text=["x", "y"])).ids == [7, 8]


def test_named_columns_are_taken(cut: Cut) -> None:
    columns = InputColumns(text="review", id="key")
    found = cut("texts.csv", "key,review,text,id\na,good,no,no\n", columns=columns)
    assert (found.inputs, found.ids) == (["good"], ["a"])


@pytest.mark.parametrize("columns", [None, InputColumns(text_pair="text_pair")])
def test_a_text_classification_takes_pairs(cut: Cut, columns: InputColumns | None) -> None:
    found = cut("pairs.csv", "text,text_pair\na,b\nc,\n", kind=PAIRS, columns=columns)
    assert found.inputs == [{"text": "a", "text_pair": "b"}, ""]
    assert found.errors == {1: ("invalid_payload", "row 2: column 'text_pair' is empty")}
    assert found.report.estimated_tokens == 4


def test_other_kinds_leave_a_second_text_alone(cut: Cut) -> None:
    assert cut("pairs.csv", "text,text_pair\na,b\n").inputs == ["a"]
    error = refusal(cut, "pairs.csv", "text,text_pair\na,b\n", columns=InputColumns(text_pair="text_pair"))
    assert error.param == "input_columns.text_pair"


def test_a_row_without_a_text_fails_alone(cut: Cut) -> None:
    found = cut("texts.jsonl", json_lines({"text": "a"}, {"text": ""}, {"text": None}, {"text": "b"}))
    assert found.inputs == ["a", "", "", "b"]
    message = "column 'text' is empty"
    assert found.errors == {1: ("invalid_payload", f"row 2: {message}"), 2: ("invalid_payload", f"row 3: {message}")}
    assert (found.report.num_inputs, found.report.num_refused) == (4, 2)


def test_a_text_that_is_too_large_fails_alone(cut: Cut) -> None:
    found = cut("texts.jsonl", json_lines({"text": "a" * 11}, {"text": "b"}), max_text_bytes=10)
    assert found.errors == {0: ("payload_too_large", "row 1: the text has 11 bytes; at most 10 are taken")}


def test_a_shard_has_bounded_inputs_tokens_and_bytes(cut: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    content = csv_of("text", ["ab"] * 10)
    assert [one.num_inputs for one in cut("t.csv", content, max_inputs=4).index] == [4, 4, 2]
    assert [one.num_inputs for one in cut("t.csv", content, max_tokens=8).index] == [2] * 5
    monkeypatch.setattr("workers.sharding.cutter.MAX_SHARD_BYTES", 3 * len('"ab"'))
    assert [one.num_inputs for one in cut("t.csv", content).index] == [3, 3, 3, 1]
    with_ids = csv_of("id,text", ["a name as long,"] * 4)
    assert [one.num_inputs for one in cut("t.csv", with_ids + "b,ab\n").index] == [1] * 5, "ids take room, too"


def test_only_a_text_alone_is_over_the_tokens(cut: Cut) -> None:
    found = cut("t.csv", csv_of("text", ["a" * 50, "b", "c" * 50]), max_tokens=20)
    assert [(one.num_inputs, one.estimated_tokens) for one in found.index] == [(1, 52), (1, 3), (1, 52)]


def test_what_the_model_cuts_is_not_counted(cut: Cut) -> None:
    estimate = TokenEstimate(tokens_per_byte=1.0, max_tokens=8)
    assert cut("t.csv", csv_of("text", ["a" * 50] * 4), estimate=estimate, max_tokens=16).index[0].num_inputs == 2


def test_no_more_shards_than_ids_have_room_for(cut: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_SHARDS == 999_999
    monkeypatch.setattr("workers.sharding.cutter.MAX_SHARDS", 3)
    assert cut("t.csv", csv_of("text", ["a"] * 3), max_inputs=1).report.num_shards == 3
    assert "more than 3 shards" in refusal(cut, "t.csv", csv_of("text", ["a"] * 4), max_inputs=1).message


@pytest.mark.parametrize(("num_rows", "text"), [(12, "a"), (1, "a" * 40)])
def test_no_more_inputs_or_tokens_than_a_job_has_room_for(
    cut: Cut, monkeypatch: pytest.MonkeyPatch, num_rows: int, text: str
) -> None:
    monkeypatch.setattr("workers.sharding.cutter.MAX_JOB_SIZE", 33)
    assert cut("t.csv", csv_of("text", ["a"] * 11), max_inputs=2).report.estimated_tokens == 33
    error = refusal(cut, "t.csv", csv_of("text", [text] * num_rows), max_inputs=2)
    assert error.message == "t.csv has more than 33 inputs or estimated tokens; split the file"


BROKEN = [
    ("t.csv", "", "t.csv is empty; upload a file with rows"),
    ("t.csv", "text\n", "t.csv has no rows; add some"),
    ("t.jsonl", "\n\n", "t.jsonl is empty"),
    ("t.csv", "review\na\n", "t.csv has no column 'text'; it has 'review': rename one to 'text', or name yours in"),
    ("t.csv", "text,id\na,1\nb\n", "t.csv, row 2 (line 3): too few cells: 1 cell, but the header has 2 columns"),
    ("t.jsonl", '{"text":"a"}\n{"text":\n', "t.jsonl, row 2 (line 2): not JSON"),
    ("t.jsonl", '{"text":"a"}\n{"body":"b"}\n', "t.jsonl, row 2 (line 2), column 'text': is missing in this row"),
    ("t.jsonl", '{"text":["a"]}\n', "t.jsonl, row 1 (line 1), column 'text': is a list, not a string"),
    ("t.jsonl", '{"text":"a","id":[1]}\n', "column 'id': is a list; an id is a string or a number"),
    (
        "t.csv",
        "text\n온돌\n".encode("cp949"),
        "t.csv, row 1 (line 2): byte 5 of the file is 0xbf: the file is not UTF-8",
    ),
    (
        "t.jsonl",
        '{"text":"a"}\n{"text":"b","id":1}\n',
        "(line 2), column 'id': is in this row, but not in the first one",
    ),
    ("t.parquet", b"PAR1 and nothing", "t.parquet is not readable as Parquet"),
    ("t.csv", b"\x1f\x8b\x08 and more", "t.csv is compressed with gzip; decompress it first"),
    ("t.docx", "text\na\n", "t.docx has a name that ends in '.docx'"),
    ("t.csv", "text,id\n,1\n,2\n", "t.csv has no input that can be run: row 1: column 'text' is empty"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_a_broken_file_is_named_with_row_and_column(cut: Cut, name: str, content: str | bytes, message: str) -> None:
    error = refusal(cut, name, content)
    assert message in error.message
    assert (error.code, error.param) == ("invalid_payload", "input_file")


def test_all_broken_rows_are_counted_and_the_first_named(cut: Cut) -> None:
    message = refusal(cut, "t.csv", csv_of("text,id", ["a,1", *["b"] * 7])).message
    assert message.startswith("t.csv has 7 broken rows; the first 5:\n- row 2 (line 3): too few cells")


def test_a_named_column_that_is_not_there_is_the_columns_mistake(cut: Cut) -> None:
    error = refusal(cut, "t.csv", "text\na\n", columns=InputColumns(id="key"))
    assert error.param == "input_columns.id"
    assert error.message == "t.csv has no column 'key', which input_columns.id names; it has 'text'"


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_memory_does_not_grow_with_the_file(make_plan: MakePlan, name: str) -> None:
    def peak_of(num_rows: int) -> int:
        rows = [(str(i), f"the floor is warm in room {i}") for i in range(num_rows)]
        contents: dict[str, str | bytes] = {
            "t.csv": csv_of("id,text", map(",".join, rows)),
            "t.jsonl": json_lines(*({"id": key, "text": text} for key, text in rows)),
            "t.parquet": parquet_of(id=[key for key, _ in rows], text=[text for _, text in rows]),
        }
        plan = make_plan(name, contents[name])
        tracemalloc.start()
        try:
            assert cut_file(plan).num_inputs == num_rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_of(10)  # what is imported and cached by the first run is not the file's
    added_rows = 16_000
    assert peak_of(4_000 + added_rows) - peak_of(4_000) < 10 * added_rows  # a row itself takes over 100 bytes
