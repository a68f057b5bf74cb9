"""Results are read as they arrive, whatever the pieces, and a broken answer is forgotten."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from ondol.client.errors import BadAnswer, ConnectionFailed
from ondol.client.result_sinks import ItemLines, NpySink, VectorItems
from ondol.client.retry import RetryPolicy
from tests.client.scripted_server import ScriptedServer, client_of

pytestmark = pytest.mark.unit


def _npy(array: np.ndarray[Any, Any], *, version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version, allow_pickle=False)
    return file.getvalue()


def _fill(sink: NpySink | ItemLines, content: bytes, step: int) -> None:
    for start in range(0, len(content), step):
        sink.write(content[start : start + step])


@pytest.mark.parametrize("step", [1, 7, 100, 1_000_000])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_an_npy_file_becomes_its_array_in_any_pieces(step: int, version: tuple[int, int]) -> None:
    rows = np.arange(60, dtype=np.float32).reshape(20, 3)
    sink = NpySink()
    sink.begin()
    _fill(sink, _npy(rows, version=version), step)
    assert sink.vectors().dtype == np.float32
    assert sink.vectors().tolist() == rows.tolist()


def test_a_broken_npy_file_is_forgotten_and_a_short_one_refused() -> None:
    first, second = _npy(np.zeros((4, 2), np.float32)), _npy(np.ones((3, 2), np.float32))
    sink = NpySink()
    sink.begin()
    sink.write(first[:-3])
    with pytest.raises(BadAnswer, match="not a whole npy file"):
        sink.vectors()
    sink.begin()
    sink.write(second)
    assert sink.vectors().tolist() == [[1, 1]] * 3


@pytest.mark.parametrize(
    "content",
    [
        b"<html>no array here</html>",
        b"\x93NUMPY\x01\x00\x10\x00not a header    ",
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 20,
        _npy(np.asfortranarray(np.zeros((3, 2), np.float32))),
        _npy(np.zeros((3, 2), np.float32)) + b"more",
    ],
)
def test_what_is_no_npy_file_is_refused(content: bytes) -> None:
    sink = NpySink()
    with pytest.raises(BadAnswer):
        sink.write(content)


def test_an_array_without_rows_is_one() -> None:
    sink = NpySink()
    sink.write(_npy(np.zeros((0, 5), np.float32)))
    assert sink.vectors().shape == (0, 5)


@pytest.mark.parametrize("step", [1, 13, 100_000])
def test_items_come_one_by_one_in_any_pieces_and_again_after_a_break(step: int) -> None:
    items = [{"index": i, "output": [{"label": "a\u2028b", "score": 0.5}]} for i in range(20)]
    content = "\n".join(json.dumps(item, ensure_ascii=False) for item in items).encode()
    taken: list[dict[str, Any]] = []
    lines = ItemLines(taken.append, taken.clear)
    lines.begin()
    _fill(lines, content[:333], step)
    lines.begin()
    _fill(lines, content, step)
    lines.end()
    assert taken == items


@pytest.mark.parametrize("line", [b"{", b"[1]", b'{"output":1}'])
def test_what_is_no_item_is_refused(line: bytes) -> None:
    lines = ItemLines(lambda _: None, lambda: None)
    with pytest.raises(BadAnswer):
        lines.write(line + b"\n")


def test_vectors_with_errors_have_nan_rows_wherever_the_errors_are() -> None:
    found = VectorItems()
    failed = {0, 1, 80, 199}
    for i in range(200):
        vector = base64.b64encode(np.full(3, i, dtype="<f4").tobytes()).decode()
        error = {"code": "invalid_payload", "message": "empty"}
        found.take({"index": i, "error": error} if i in failed else {"index": i, "output": vector})
    vectors = found.vectors()
    assert vectors.shape == (200, 3)
    assert set(np.flatnonzero(np.isnan(vectors).any(axis=1)).tolist()) == failed == set(found.errors)
    assert vectors[150].tolist() == [150, 150, 150]


def test_vectors_of_nothing_but_errors_have_no_width() -> None:
    found = VectorItems()
    found.take({"index": 0, "error": {"code": "a", "message": "b"}})
    assert found.vectors().shape == (1, 0)


def _torn() -> httpx.Response:
    def pieces() -> Iterator[bytes]:
        yield b'{"index":0}\n'
        raise httpx.RemoteProtocolError("peer closed connection")

    return httpx.Response(200, content=pieces())


def test_an_answer_that_breaks_off_each_time_is_told_apart_from_no_server(tmp_path: Path) -> None:
    client = client_of(ScriptedServer([_torn(), _torn(), _torn()]))
    client.policy = RetryPolicy(max_retries=1, base_s=0.001)
    with pytest.raises(ConnectionFailed, match=r"the answer of http://ondol.test broke off \(peer closed connection\)"):
        client.jobs.download("job_1", tmp_path / "items.jsonl")
    assert list(tmp_path.iterdir()) == []
