"""A large result is in the store whole or not at all, and on the disk before the row that names it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import fsspec
import pytest

from models_store.result_blobs import ResultBlobs
from ondol.contract.errors import ChecksumMismatch, ModelStoreError, StoreUnavailable
from tests.model_store.away import store_behind_a_driver

pytestmark = pytest.mark.unit

JOB = "job_01"
DATA = b"rows" * 1000


@pytest.fixture(params=["file", "memory"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, or a store in which an object appears when its upload ends."""
    return f"file://{tmp_path}/store" if request.param == "file" else f"memory://{tmp_path.name}"


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> ResultBlobs:
    return ResultBlobs(store_behind_a_driver(monkeypatch))


def names(store_url: str) -> list[str]:
    filesystem, root = fsspec.core.url_to_fs(store_url)
    filesystem.invalidate_cache()
    return sorted(str(path).partition("/results/")[2] for path in filesystem.find(f"{root}/results"))


def test_a_result_is_read_as_it_was_written(store_url: str) -> None:
    blobs = ResultBlobs(store_url)
    path = blobs.write(JOB, 2, DATA)
    assert names(store_url) == [path]
    assert blobs.read(path, sha256=hashlib.sha256(DATA).hexdigest()) == DATA
    with pytest.raises(ChecksumMismatch):
        blobs.read(path, sha256=hashlib.sha256(b"another").hexdigest())


def test_a_result_that_is_gone_says_so_and_is_not_tried_again(store_url: str) -> None:
    with pytest.raises(ModelStoreError, match="could not be read") as caught:
        ResultBlobs(store_url).read(f"{JOB}/1.bin")
    assert (caught.value.code, caught.value.retryable) == ("file_missing", False)


def test_deleting_takes_all_attempts_of_a_job_and_what_is_gone_is_no_error(store_url: str) -> None:
    blobs = ResultBlobs(store_url)
    paths = [blobs.write(JOB, attempt, DATA) for attempt in (1, 2)]
    other = blobs.write("job_02", 1, DATA)
    blobs.delete(paths[0])
    blobs.delete(paths[0])
    assert names(store_url) == [other]


def test_a_result_written_again_never_touches_the_bytes_that_somebody_reads(tmp_path: Path) -> None:
    blobs = ResultBlobs(f"file://{tmp_path}")
    path = blobs.write(JOB, 1, DATA)
    with (tmp_path / "results" / path).open("rb") as reader:
        assert blobs.write(JOB, 1, DATA[:-1]) == path
        assert reader.read() == DATA
    assert blobs.read(path) == DATA[:-1]
    assert names(f"file://{tmp_path}") == [path], "nothing half-written is left"


def test_a_result_is_on_the_disk_before_the_row_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    ResultBlobs(f"file://{tmp_path}").write(JOB, 1, DATA)
    folder = f"{tmp_path}/results/{JOB}"
    assert synced[:2] == [f"{tmp_path}", f"{tmp_path}/results"], "the names of the folders that are new"
    assert synced[2].startswith(f"{folder}/1.bin.") and synced[3:] == [folder], "the bytes first, then the file's name"
    synced.clear()
    ResultBlobs(f"file://{tmp_path}").write(JOB, 2, DATA)
    assert len(synced) == 2, "nothing but the file is new"


def test_the_errors_of_a_driver_are_those_of_a_store_that_is_away(away: ResultBlobs) -> None:
    for step in (lambda: away.write(JOB, 1, DATA), lambda: away.read(f"{JOB}/1.bin"), lambda: away.delete(f"{JOB}/1")):
        with pytest.raises(StoreUnavailable, match="endpoint"):
            step()
