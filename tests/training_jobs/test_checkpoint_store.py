"""Checkpoints in the store: whole or not there, and nothing stays that nobody knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from models_store.checkpoints import CheckpointStore
from ondol.contract.errors import ModelStoreError

pytestmark = pytest.mark.unit

JOB = "job_1"


def test_what_earlier_attempts_left_is_deleted_and_what_is_known_stays(tmp_path: Path) -> None:
    source = tmp_path / "checkpoint"
    source.mkdir()
    (source / "optimizer.pt").write_bytes(b"state")
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
