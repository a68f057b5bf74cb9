"""Every format holds the same items, in order, with ids and errors in their places, however the result is cut."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

from api.entities import StoredEntities
from api.label_scores import StoredScores
from api.parquet_result import GROUP_INPUTS
from api.result_parts import CANCELLED, ResultPart
from api.result_writers import ResultFacts, make_writer, write_pieces
from api.stored_items import JSON, NDJSON, NPY, PARQUET, StoredItems
from api.vectors import StoredVectors
from ondol.contract.errors import ModelStoreError, NotAcceptable
from ondol.contract.kinds import JobKind

pytestmark = pytest.mark.unit

ERROR = {"code": "context_length_exceeded", "message": "too long", "param": None}
WIDTH = 4


def summary(num: int, *, errors: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"tokens": list(range(3, 3 + num)), "truncated": [num - 1], "errors": errors or {}}
    return {"model": "tiny:1", "dtype": "float32", "engine": "torch", "num_tokens": 10, **facts, **more}


def vectors(num: int, *, seed: int, **more: Any) -> StoredVectors:
    rows = np.random.default_rng(seed).normal(size=(num, WIDTH)).astype("<f4")
    return StoredVectors.read(summary(num, shape=[num, WIDTH], **more), rows.tobytes())


def cut_result(**more: Any) -> list[ResultPart]:
    """Three shards of embeddings, of which the second is not done; ids of the caller."""
    first = vectors(3, seed=1, ids=["a", "b", "c"], **more)
    last = vectors(2, seed=2, ids=[7, 8])
    return [
        ResultPart(0, 3, first, ids=first.summary["ids"]),
        ResultPart(3, 2, None, error=CANCELLED, ids=["d", None]),
        ResultPart(5, 2, last, ids=last.summary["ids"]),
    ]


def facts(parts: Sequence[ResultPart], kind: JobKind = JobKind.EMBEDDING, **fields: Any) -> ResultFacts:
    sample = next((part.stored for part in parts if part.stored is not None), None)
    num_inputs = sum(part.num_inputs for part in parts)
    given: dict[str, Any] = {"summary": None, "has_ids": True, **fields}
    return ResultFacts(kind, num_inputs, "tiny:1", sample=sample, **given)


def written(media_type: str, parts: Sequence[ResultPart], about: ResultFacts) -> bytes:
    return b"".join(write_pieces(make_writer(media_type, about), parts))


def test_json_and_ndjson_hold_the_same_items() -> None:
    parts = cut_result(errors={"1": ERROR})
    body = orjson.loads(written(JSON, parts, facts(parts)))
    lines = [json.loads(line) for line in written(NDJSON, parts, facts(parts)).splitlines()]
    assert body["data"] == lines
    assert [item["index"] for item in lines] == list(range(7))
    assert [item["id"] for item in lines] == ["a", "b", "c", "d", None, 7, 8]
    assert [item.get("error") for item in lines] == [None, ERROR, None, CANCELLED, CANCELLED, None, None]
    assert np.array_equal(np.float32(lines[5]["output"]), np.asarray(vectors(2, seed=2).vector(0)))
    assert {name: body[name] for name in ("object", "model", "dtype", "engine", "usage")} == {
        "object": "list",
        "model": "tiny:1",
        "dtype": "float32",
        "engine": "torch",
        "usage": {"tokens": 20},
    }


def test_a_result_of_which_nothing_is_done_is_a_document_too() -> None:
    parts = [ResultPart(0, 2, None, error=CANCELLED)]
    body = orjson.loads(written(JSON, parts, facts(parts, has_ids=False)))
    assert body["model"] == "tiny:1" and body["usage"] == {"tokens": 0} and len(body["data"]) == 2
    table = pq.read_table(io.BytesIO(written(PARQUET, parts, facts(parts, has_ids=False))))
    assert table.column("embedding").null_count == 2 and "id" not in table.column_names


def test_npy_has_the_length_that_it_states() -> None:
    parts = [ResultPart(0, 3, vectors(3, seed=1)), ResultPart(3, 2, vectors(2, seed=2))]
    writer = make_writer(NPY, facts(parts, summary={"shape": [5, WIDTH], "num_errors": 0}))
    data = b"".join(write_pieces(writer, parts))
    assert len(data) == writer.size_bytes
    expected = np.concatenate([vectors(3, seed=1).rows, vectors(2, seed=2).rows])
    assert np.array_equal(np.load(io.BytesIO(data), allow_pickle=False), expected)


@pytest.mark.parametrize("about", [None, {"shape": [7, WIDTH], "num_errors": 1}, {"shape": None}])
def test_npy_is_refused_before_its_first_byte(about: dict[str, Any] | None) -> None:
    parts = cut_result()
    with pytest.raises(NotAcceptable):
        make_writer(NPY, facts(parts, summary=about))


def test_npy_ends_at_a_shard_of_another_width() -> None:
    wide = StoredVectors.read(summary(1, shape=[1, 9]), np.zeros(9, "<f4").tobytes())
    parts = [ResultPart(0, 1, vectors(1, seed=1)), ResultPart(1, 1, wide)]
    with pytest.raises(ModelStoreError):
        written(NPY, parts, facts(parts, summary={"shape": [2, WIDTH], "num_errors": 0}))


def test_parquet_has_a_row_group_a_shard_and_nulls_for_errors() -> None:
    parts = cut_result(errors={"1": ERROR})
    file = pq.ParquetFile(io.BytesIO(written(PARQUET, parts, facts(parts))))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [3, 2, 2]
    table = file.read()
    assert table.column_names == ["index", "id", "embedding", "error", "tokens", "truncated"]
    assert table.column("index").to_pylist() == list(range(7))
    assert table.column("id").to_pylist() == ["a", "b", "c", "d", None, "7", "8"]
    assert str(table.schema.field("embedding").type) == f"fixed_size_list<element: float>[{WIDTH}]"
    found = table.column("embedding").to_pylist()
    assert [i for i, vector in enumerate(found) if vector is None] == [1, 3, 4]
    assert np.array_equal(np.float32(found[5]), vectors(2, seed=2).rows[0])
    assert table.column("error").to_pylist() == [None, ERROR, None, CANCELLED, CANCELLED, None, None]
    assert table.column("tokens").to_pylist() == [3, 4, 5, 0, 0, 3, 4]
    assert table.column("truncated").to_pylist() == [False, False, True, False, False, False, True]


def test_parquet_leaves_piece_by_piece() -> None:
    parts = [ResultPart(i, 1, vectors(1, seed=i)) for i in range(4)]
    writer = make_writer(PARQUET, facts(parts, has_ids=False))
    sizes = [len(b"".join(writer.part(part))) for part in parts]
    assert min(sizes) > 0
    assert writer.end().endswith(b"PAR1")


def test_a_long_part_is_several_row_groups() -> None:
    num = GROUP_INPUTS + 10
    rows = np.arange(num * WIDTH, dtype="<f4").reshape(num, WIDTH)
    part = ResultPart(0, num, StoredVectors.read(summary(num, shape=[num, WIDTH]), rows.tobytes()))
    file = pq.ParquetFile(io.BytesIO(written(PARQUET, [part], facts([part], has_ids=False))))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [GROUP_INPUTS, 10]
    assert np.array_equal(np.array(file.read().column("embedding").to_pylist(), dtype=np.float32), rows)


def test_one_vector_a_token_is_a_list_of_lists() -> None:
    rows = np.arange(5 * WIDTH, dtype="<f4").reshape(5, WIDTH)
    about = summary(3, shape=None, lengths=[2, 0, 3], errors={"1": ERROR}, special_tokens=[[0], [], [0, 2]])
    stored = StoredVectors.read(about, rows.tobytes())
    parts = [ResultPart(0, 3, stored), ResultPart(3, 1, None, error=CANCELLED)]
    table = pq.read_table(io.BytesIO(written(PARQUET, parts, facts(parts, has_ids=False))))
    assert table.column("embedding").to_pylist() == [rows[:2].tolist(), None, rows[2:].tolist(), None]
    assert table.column("special_tokens").to_pylist()[2] == [0, 2]


@pytest.mark.parametrize("is_failed_first", [True, False])
def test_a_shard_whose_inputs_all_failed_fits_beside_vectors_by_token(is_failed_first: bool) -> None:
    by_token: dict[str, Any] = {"shape": None, "dimensions": WIDTH}
    rows = np.arange(3 * WIDTH, dtype="<f4").reshape(3, WIDTH)
    done = StoredVectors.read(summary(2, lengths=[2, 1], special_tokens=[[0], []], **by_token), rows.tobytes())
    too_long = {"0": ERROR, "1": ERROR}
    failed = StoredVectors.read(summary(2, lengths=[0, 0], special_tokens=[[], []], errors=too_long, **by_token), b"")
    shards = [failed, done] if is_failed_first else [done, failed]
    parts = [ResultPart(2 * i, 2, stored) for i, stored in enumerate(shards)]
    table = pq.read_table(io.BytesIO(written(PARQUET, parts, facts(parts, has_ids=False))))
    items = orjson.loads(written(JSON, parts, facts(parts, has_ids=False)))["data"]
    assert table.column("embedding").to_pylist() == [item.get("output") for item in items]
    assert [error is None for error in table.column("error").to_pylist()] == ["error" not in item for item in items]


def test_labels_and_scores_are_lists_best_first() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]], dtype=np.float32)
    about = summary(2, shape=[2, 3], labels=["sad", "calm", "glad"], top_k=2, threshold=0.6, errors={"1": ERROR})
    stored: StoredItems = StoredScores.read(about, scores.tobytes())
    parts = [ResultPart(0, 2, stored)]
    table = pq.read_table(io.BytesIO(written(PARQUET, parts, facts(parts, JobKind.TEXT_CLASSIFICATION, has_ids=False))))
    assert table.column("labels").to_pylist() == [["calm", "glad"], None]
    assert table.column("scores").to_pylist()[0] == [float(np.float32(0.7)), float(np.float32(0.2))]
    assert table.column("predicted").to_pylist() == [[True, False], None]


def test_entities_are_structs() -> None:
    entity = {"entity_group": "NAME", "score": 0.5, "word": "Ada", "start": 0, "end": 3}
    stored = StoredEntities.read(summary(2), orjson.dumps([[entity], []]))
    parts = [ResultPart(0, 2, stored)]
    table = pq.read_table(
        io.BytesIO(written(PARQUET, parts, facts(parts, JobKind.TOKEN_CLASSIFICATION, has_ids=False)))
    )
    [found], nothing = table.column("entities").to_pylist()
    assert {name: value for name, value in found.items() if value is not None} == entity
    assert nothing == []
