"""A file's bytes are in the store whole or not at all, and come out as they went in or not at all."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import uuid
from datetime import timedelta
from pathlib import Path

import pytest

from models_store.file_blobs import FileBlobs
from ondol.contract.errors import ChecksumMismatch, FileNotFound, ModelStoreError, StoreUnavailable
from ondol.contract.ids import new_id

pytestmark = pytest.mark.integration

CONTENT = b"text,label\n" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
AT_ONCE = timedelta(0)

_FULL_DISK_PROGRAM = """
import sys
from pathlib import Path
from models_store.file_blobs import FileBlobs
from ondol.contract.errors import StorageFull
from ondol.contract.ids import new_id
disk = Path(sys.argv[1])
writer = FileBlobs(str(disk / "store")).create(new_id("file"))
try:
    for _ in range(4):
        writer.write(bytes(500_000))
    writer.commit()
except StorageFull as exc:
    writer.abort()
    print(exc.code, [path.name for path in (disk / "store" / "files").iterdir()])
"""


@pytest.fixture(params=["local", "remote"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> FileBlobs:
    """A store on the local disk, and one behind fsspec."""
    return FileBlobs(str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def write(blobs: FileBlobs, content: bytes = CONTENT) -> str:
    file_id = new_id("file")
    writer = blobs.create(file_id)
    for start in range(0, len(content), 3000):
        writer.write(content[start : start + 3000])
    writer.commit()
    assert (writer.num_bytes, writer.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    writer.abort()  # changes nothing any more
    return file_id


def test_what_was_written_is_fetched_verified(blobs: FileBlobs, tmp_path: Path) -> None:
    file_id = write(blobs)
    blobs.fetch(file_id, tmp_path / "train.csv", sha256=DIGEST, size_bytes=len(CONTENT))
    assert (tmp_path / "train.csv").read_bytes() == CONTENT
    blobs.delete(file_id)
    blobs.delete(file_id)
    with pytest.raises(FileNotFound, match=file_id):
        blobs.fetch(file_id, tmp_path / "again.csv", sha256=DIGEST, size_bytes=len(CONTENT))
    assert not (tmp_path / "again.csv").exists()


def test_nothing_is_seen_before_the_commit_and_nothing_stays_after_an_abort(blobs: FileBlobs, tmp_path: Path) -> None:
    file_id = new_id("file")
    writer = blobs.create(file_id)
    writer.write(CONTENT)
    with pytest.raises(FileNotFound), blobs.open(file_id):
        pass
    writer.abort()
    with pytest.raises(ModelStoreError):
        writer.write(CONTENT)
    assert blobs.delete_orphans(lambda _: set(), older_than=AT_ONCE) == []


def test_a_damaged_blob_is_not_handed_out(tmp_path: Path) -> None:
    blobs = FileBlobs(str(tmp_path / "store"))
    file_id = write(blobs)
    path = tmp_path / "store" / "files" / file_id
    path.chmod(0o644)
    path.write_bytes(CONTENT.replace(b"text", b"tent", 1))
    with pytest.raises(ChecksumMismatch, match=file_id):
        blobs.fetch(file_id, tmp_path / "train.csv", sha256=DIGEST, size_bytes=len(CONTENT))
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_orphans_are_what_no_row_names_and_uploads_that_never_ended(blobs: FileBlobs) -> None:
    kept, orphan = write(blobs), write(blobs)
    left_id = new_id("file")
    left = blobs.create(left_id)
    left.write(CONTENT)
    assert blobs.delete_orphans(lambda ids: {kept} & set(ids), older_than=timedelta(hours=1)) == []
    gone = blobs.delete_orphans(lambda ids: {kept} & set(ids), older_than=AT_ONCE)
    # Where an upload is seen before its end, what is left of it is found too.
    assert orphan in gone and kept not in gone
    assert {name.partition(".")[0] for name in gone} <= {orphan, left_id}
    with blobs.open(kept) as file:
        assert file.read() == CONTENT
    left.abort()


def test_an_id_is_never_a_path(blobs: FileBlobs) -> None:
    for file_id in ("../x", "file_../../etc/passwd", "", "file_" + "x" * 27):
        with pytest.raises(FileNotFound):
            blobs.create(file_id)


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"a file where a folder should be")
    with pytest.raises(StoreUnavailable):
        FileBlobs(str(tmp_path / "store")).create(new_id("file")).write(b"x")


def test_a_full_disk_keeps_nothing_of_the_file(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec"
    in_namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*in_namespace, f"{mount} true"], check=False).returncode:
        pytest.skip("this host lets nobody mount a small disk of his own")
    program = f"{sys.executable} -c '{_FULL_DISK_PROGRAM}' {tmp_path}"
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run([*in_namespace, f"{mount} {program}"], cwd=root, capture_output=True, text=True, check=True)
    assert ended.stdout == "storage_full []\n"
