"""One bit of a stored checkpoint is not what it was. Scenario 28 of `docs/reliability.md`."""

from __future__ import annotations

from pathlib import Path

import pytest

from models_store.checkpoints import MANIFEST_FILE, CheckpointStore
from ondol.contract.errors import ModelStoreError

pytestmark = pytest.mark.unit

STEPS = (4, 8)
FILES = ("optimizer.pt", "model.safetensors", MANIFEST_FILE)


@pytest.mark.parametrize("name", FILES)
def test_28_a_checkpoint_with_one_flipped_bit_is_not_handed_out(tmp_path: Path, name: str) -> None:
    store = CheckpointStore(f"file://{tmp_path / 'store'}")
    digests = {}
    for step in STEPS:
        source = tmp_path / f"source-{step}"
        source.mkdir()
        for number, each in enumerate(FILES[:2]):
            (source / each).write_bytes(bytes([step, number]) * 1000)
        digests[step] = store.commit(source, job_id="job_1", step=step, attempt=1).manifest_digest
    damaged = tmp_path / "store" / "checkpoints" / "job_1" / "8-1" / name
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.chmod(0o600)
    damaged.write_bytes(data)

    def fetch(step: int) -> Path:
        target = tmp_path / f"back-{step}"
        return store.fetch(target, job_id="job_1", step=step, attempt=1, manifest_digest=digests[step])

    with pytest.raises(ModelStoreError) as refused:
        fetch(8)
    assert not refused.value.retryable
    assert not (tmp_path / "back-8").exists()
    assert (fetch(4) / "optimizer.pt").read_bytes() == bytes([4, 0]) * 1000
