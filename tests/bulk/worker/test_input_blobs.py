"""Payloads lie end to end in one blob an attempt: whole or not at all, read by range, and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from models_store.input_blobs import InputBlobs
from ondol.contract.errors import ChecksumMismatch, ModelStoreError
from ondol.sql.records import InputBlob

pytestmark = pytest.mark.unit

JOB = "job_01"
PIECES = (b'["a"]', b'["b","c"]')


@pytest.fixture(params=["file", "memory"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, or a store in which an object appears when its upload ends."""
    return f"file://{tmp_path}/store" if request.param == "file" else f"memory://{tmp_path.name}"


@pytest.fixture
def blobs(store_url: str) -> InputBlobs:
    return InputBlobs(store_url)


def piece(path: str, number: int) -> InputBlob:
    offset = sum(map(len, PIECES[:number]))
    return InputBlob(path, offset, len(PIECES[number]), hashlib.sha256(PIECES[number]).hexdigest())


def names(store_url: str) -> list[str]:
    filesystem, root = fsspec.core.url_to_fs(store_url)
    filesystem.invalidate_cache()
    return sorted(str(path).partition("/inputs/")[2] for path in filesystem.find(f"{root}/inputs"))


def test_each_payload_is_read_by_its_range(blobs: InputBlobs) -> None:
    path = blobs.write(JOB, 1, PIECES)
    assert [blobs.read(piece(path, number)) for number in (0, 1)] == list(PIECES)


def test_a_payload_that_is_not_what_was_written_is_refused(blobs: InputBlobs) -> None:
    path = blobs.write(JOB, 1, PIECES)
    good = piece(path, 1)
    with pytest.raises(ChecksumMismatch):
        blobs.read(InputBlob(path, good.offset - 1, good.size, good.sha256))
    with pytest.raises(ChecksumMismatch):
        blobs.read(InputBlob(path, 10_000, good.size, good.sha256))


def test_a_blob_that_is_gone_says_so(blobs: InputBlobs) -> None:
    with pytest.raises(ModelStoreError) as caught:
        blobs.read(piece(f"{JOB}/1.bin", 0))
    assert caught.value.code == "file_missing"


def test_what_was_not_written_whole_is_not_there(blobs: InputBlobs, store_url: str) -> None:
    def stopped() -> Iterator[bytes]:
        yield PIECES[0]
        raise InterruptedError("no longer wanted")

    with pytest.raises(InterruptedError):
        blobs.write(JOB, 1, stopped())
    assert names(store_url) == []


def test_deleting_takes_all_of_a_job_one_attempt_or_the_older_ones(blobs: InputBlobs, store_url: str) -> None:
    paths = [blobs.write(JOB, attempt, PIECES) for attempt in (1, 2, 10)]
    other = blobs.write("job_02", 1, PIECES)
    blobs.delete_older(JOB, 10)
    assert names(store_url) == sorted((paths[2], other))
    newer = blobs.write(JOB, 11, PIECES)
    blobs.delete_one(newer)
    assert names(store_url) == sorted((paths[2], other))
    blobs.delete(paths[2])
    assert names(store_url) == [other]


def test_deleting_what_is_gone_is_no_error(blobs: InputBlobs) -> None:
    blobs.delete(f"{JOB}/1.bin")
    blobs.delete_one(f"{JOB}/1.bin")
    blobs.delete_older(JOB, 5)
