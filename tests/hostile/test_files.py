"""Whatever is in an uploaded file, reading it ends in rows or in one error that names the file."""

from __future__ import annotations

import io
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given

from ondol.contract.errors import ContractError
from ondol.contract.fine_tune import FineTuneOptions
from ondol.contract.inference_checks import TokenEstimate
from ondol.contract.kinds import JobKind
from tests.hostile.outcomes import outcome
from tests.hostile.strategies import deep_json, json_values, odd_texts, torn
from tests.hypothesis_runs import bounded
from workers.sharding.cut import cut_file
from workers.sharding.plan import BatchFormat, CutPlan
from workers.training.data.reading import read_examples

pytestmark = pytest.mark.unit

OPTIONS = FineTuneOptions.model_validate({"output_name": "mood", "train_file": "file_" + "0" * 26})
TABLE = pa.table({"text": ["one", "two", "three"], "label": ["a", "b", "a"]})
CSV = b'text,label\n"a, quoted ""text""",good\nplain,bad\n'
LINES = b'{"text": "one", "label": "a"}\n{"text": "two", "label": "b"}\n'
LIST = b'[{"text": "one", "label": "a"}, {"text": "two", "label": "b"}]'
BATCH = b'{"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": {"model": "tiny", "input": "a"}}\n'


def csv_of(rows: list[list[str]]) -> bytes:
    lines = [",".join(cells) for cells in [["text", "label"], *rows]]
    return "\n".join(lines).encode(errors="surrogatepass")


def parquet(table: Any = TABLE) -> bytes:
    """The table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


PARQUET = parquet()
json_rows = st.lists(st.dictionaries(st.sampled_from(["text", "label", "x"]), json_values, max_size=3) | json_values)
files = st.one_of(
    st.tuples(st.just("a.csv"), torn(CSV)),
    st.tuples(st.just("a.tsv"), torn(CSV.replace(b",", b"\t"))),
    st.tuples(st.just("a.csv"), st.lists(st.lists(odd_texts, max_size=4), max_size=5).map(csv_of)),
    st.tuples(st.just("a.jsonl"), torn(LINES)),
    st.tuples(st.just("a.jsonl"), json_rows.map(lambda rows: "\n".join(map(json.dumps, rows)).encode())),
    st.tuples(st.just("a.json"), torn(LIST)),
    st.tuples(st.just("a.json"), json_rows.map(lambda rows: json.dumps(rows).encode())),
    st.tuples(st.just("a.parquet"), torn(PARQUET)),
    st.tuples(odd_texts, torn(CSV)),
)
DEEP_LINE = b'{"text": ' + deep_json() + b', "label": "a"}\n'


@bounded(200, num_long=10_000)
@given(file=files)
@example(file=("a.jsonl", DEEP_LINE))
@example(file=("a.json", deep_json()))
@example(file=("a.json", b"[" + DEEP_LINE + b"]"))
@example(file=("a.csv", b"text,label\n" + b'"' * 200_001 + b",a\n"))
@example(file=("a.csv", b"text,label\n\x00,a\n"))
@example(file=("a.jsonl", b'{"text": "a", "label": ' + b"9" * 10_000 + b"}\n"))
def test_training_data_are_read_or_refused(file: tuple[str, bytes]) -> None:
    filename, data = file
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "data"
        path.write_bytes(data)
        rows = outcome(lambda: read_examples(path, filename=filename, options=OPTIONS), ContractError)
        if isinstance(rows, ContractError):
            assert filename in rows.message
        else:
            assert len(rows) > 0


@bounded(200, num_long=10_000)
@given(file=files, is_batch=st.booleans())
@example(file=("a.jsonl", DEEP_LINE), is_batch=False)
@example(file=("a.jsonl", BATCH.replace(b'"a"', deep_json())), is_batch=True)
@example(file=("a.jsonl", BATCH + BATCH), is_batch=True)
@example(file=("a.jsonl", BATCH.replace(b'"1"', b'"\\ud800"')), is_batch=True)
def test_a_file_of_inputs_is_cut_or_refused(file: tuple[str, bytes], is_batch: bool) -> None:
    filename, data = file
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").write_bytes(data)
        (folder / "work").mkdir()
        plan = CutPlan(
            path=folder / "data",
            filename=filename,
            work_dir=folder / "work",
            kind=JobKind.EMBEDDING,
            estimate=TokenEstimate(tokens_per_byte=0.25, max_tokens=None),
            max_tokens=64,
            batch=BatchFormat("/v1/embeddings", {"model": "tiny"}) if is_batch else None,
        )
        report = outcome(lambda: cut_file(plan), ContractError)
        if isinstance(report, ContractError):
            assert report.message
        else:
            assert report.num_inputs > report.num_refused >= 0


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"\xff\xfe", b"b", b"c"], pa.binary()),
        pa.array([None, None, None], pa.null()),
        pa.array([{"a": 1}, {"a": 2}, {"a": 3}]),
        pa.array([float("nan"), float("inf"), 0.5]),
        pa.array([2**63 - 1, -(2**63), 0], pa.int64()),
        pa.array([10**15, 0, -1], pa.timestamp("ns")),
        pa.array([[["x"]], [], None]),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["a", "b"])),
    ],
)
def test_odd_columns_of_parquet_are_read_or_refused(column: Any, tmp_path: Path) -> None:
    for table in (
        pa.table({"text": column, "label": ["a", "b", "a"]}),
        pa.table({"text": TABLE["text"], "label": column}),
    ):
        path = tmp_path / "a.parquet"
        path.write_bytes(parquet(table))
        rows = outcome(partial(read_examples, path, filename="a.parquet", options=OPTIONS), ContractError)
        if isinstance(rows, ContractError):
            assert "a.parquet" in rows.message
        else:
            assert len(rows) > 0
