"""Many inputs travel in one body or as a file written while it is sent; an iterator is read as far as needed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ondol.cli import exits
from ondol.cli.texts import report_errors
from ondol.client import inputs as limits
from ondol.client.embed_flow import check_texts
from ondol.client.errors import ItemError
from ondol.client.file_transfer import PIECE_BYTES, InputsUpload
from ondol.client.inputs import Inputs
from ondol.contract.errors import InvalidPayload

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _small_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BODY_BYTES", 1_000)


def _count(num: int, seen: list[int]) -> Iterator[str]:
    for number in range(num):
        seen.append(number)
        yield f"text {number}"


def _plain(item: object, _index: int) -> str | dict[str, str]:
    assert isinstance(item, str | dict)
    return item


def test_an_iterator_is_read_only_as_far_as_a_body_may_hold() -> None:
    seen: list[int] = []
    inputs = check_texts(_count(10_000, seen))
    assert not inputs.is_whole and not inputs.fits_body
    assert len(seen) < 120
    lines = [json.loads(line)["text"] for line in inputs.lines()]
    assert lines == [f"text {number}" for number in range(10_000)]
    with pytest.raises(InvalidPayload, match="read once"):
        list(inputs.lines())


def test_a_short_iterator_is_held_whole() -> None:
    inputs = check_texts(_count(3, []))
    assert inputs.is_whole and inputs.fits_body
    assert inputs.held == ("text 0", "text 1", "text 2")


def test_a_list_is_checked_at_once_and_can_be_sent_again() -> None:
    inputs = check_texts(["a" * 300] * 10)
    assert inputs.is_whole and not inputs.fits_body
    assert list(inputs.lines()) == list(inputs.lines())
    with pytest.raises(InvalidPayload, match="a text is expected"):
        check_texts(["a", 1])  # type: ignore[list-item]  # what is wrong is the point


def test_the_input_that_is_no_text_is_named_while_it_is_sent() -> None:
    given: Iterator[object] = iter(["a" * 1_100, "b", 7])
    inputs = check_texts(given)  # type: ignore[arg-type]  # what is wrong is the point
    with pytest.raises(InvalidPayload) as caught:
        list(inputs.lines())
    assert caught.value.param == "input[2]"


def test_a_text_that_is_no_unicode_is_named() -> None:
    with pytest.raises(InvalidPayload, match="lone surrogate") as caught:
        check_texts(["fine", "a\ud800"])
    assert caught.value.param == "input[1]"


def test_pairs_go_in_columns_of_their_own_and_not_beside_texts() -> None:
    pairs = Inputs([{"text": "a", "text_pair": "b"}] * 50, _plain)
    assert pairs.has_pairs
    assert json.loads(next(pairs.lines())) == {"text": "a", "text_pair": "b"}
    mixed = Inputs([{"text": "a", "text_pair": "b"}, "c"], _plain)
    with pytest.raises(InvalidPayload, match="all or none are pairs"):
        list(mixed.lines())


def test_an_upload_is_a_form_whose_pieces_are_bounded() -> None:
    texts = [f"{number} " + "x" * 900 for number in range(2_000)]
    upload = InputsUpload(check_texts(texts))
    pieces = list(upload.pieces())
    assert all(pieces) and max(map(len, pieces)) < PIECE_BYTES + 2_000
    assert upload.num_inputs == 2_000
    assert "content-length" not in upload.headers
    content = b"".join(pieces[1:-1])
    assert [json.loads(line)["text"] for line in content.splitlines()] == texts
    assert b'filename="inputs.jsonl"' in pieces[0]


def test_of_very_many_errors_the_first_are_told_and_the_others_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_errors({index: ItemError("cancelled", "not done") for index in range(2_000)}) == exits.JOB_FAILED
    first, *_, last = lines = capsys.readouterr().err.splitlines()
    assert first == "ondol: input[0]: cancelled: not done" and last == "ondol: 1980 other inputs failed, too"
    assert len(lines) == 21
