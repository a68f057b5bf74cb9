"""Checkpoints in the store: whole or not there, and nothing stays that nobody knows."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from models_store.checkpoints import CheckpointStore
from ondol.contract.errors import ModelStoreError

pytestmark = pytest.mark.unit

JOB = "job_1"


def test_what_earlier_attempts_left_is_deleted_and_what_is_known_stays(tmp_path: Path) -> None:
    source = _folder_with_state(tmp_path / "checkpoint")
    store = CheckpointStore(f"file://{tmp_path / 'store'}")
    found = {
        (step, attempt): store.commit(source, job_id=JOB, step=step, attempt=attempt)
        for step, attempt in ((4, 1), (8, 1), (8, 2), (12, 2), (16, 3))
    }
    (tmp_path / "store" / "checkpoints" / JOB / "12-2" / "manifest.json").unlink()  # torn

    store.delete_unknown(JOB, {(4, 1), (8, 2)}, before_attempt=3)

    left = {folder.name for folder in (tmp_path / "store" / "checkpoints" / JOB).iterdir()}
    assert left == {"4-1", "8-2", "16-3"}, "the running attempt's own are left alone, recorded or not"
    digest = found[8, 2].manifest_digest
    fetched = store.fetch(tmp_path / "back", job_id=JOB, step=8, attempt=2, manifest_digest=digest)
    assert (fetched / "optimizer.pt").read_bytes() == b"state"
    with pytest.raises(ModelStoreError):
        store.fetch(tmp_path / "gone", job_id=JOB, step=8, attempt=1, manifest_digest=digest)


def test_a_store_on_the_same_disk_shares_the_files_and_outlives_their_folder(tmp_path: Path) -> None:
    source, store = _folder_with_state(tmp_path / "checkpoint"), CheckpointStore(f"file://{tmp_path / 'store'}")
    stored = tmp_path / "store" / "checkpoints" / JOB / "4-1" / "optimizer.pt"
    committed = store.commit(source, job_id=JOB, step=4, attempt=1)
    assert stored.stat().st_ino == (source / "optimizer.pt").stat().st_ino, "nothing was written a second time"
    assert stored.stat().st_mode & 0o222 == 0
    again = store.commit(source, job_id=JOB, step=4, attempt=1)
    assert again == committed and not list(stored.parent.glob("*.tmp"))
    shutil.rmtree(source)
    fetched = store.fetch(tmp_path / "back", job_id=JOB, step=4, attempt=1, manifest_digest=committed.manifest_digest)
    assert (fetched / "optimizer.pt").read_bytes() == b"state"
    assert (fetched / "optimizer.pt").stat().st_ino != stored.stat().st_ino, "who resumes has files of its own"


def test_a_store_on_another_disk_gets_a_copy(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two filesystems")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        source = _folder_with_state(Path(folder) / "checkpoint")
        here = CheckpointStore(f"file://{tmp_path / 'here'}").commit(source, job_id=JOB, step=4, attempt=1)
        there = CheckpointStore(f"file://{folder}/there").commit(source, job_id=JOB, step=4, attempt=1)
    copied = tmp_path / "here" / "checkpoints" / JOB / "4-1" / "optimizer.pt"
    assert here == there and copied.read_bytes() == b"state"


def _folder_with_state(folder: Path) -> Path:
    folder.mkdir()
    (folder / "optimizer.pt").write_bytes(b"state")
    return folder
