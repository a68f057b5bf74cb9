"""A version exists whole or not at all, whenever its publisher is killed and wherever space runs out."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models_store.cache import LocalCache
from models_store.store import ModelStore
from ondol.contract.errors import ModelStoreError
from tests.model_store.folders import contents, make_version
from tests.model_store.processes import held_program, start_program
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

_FULL_DISK_PROGRAM = """
import sys
from pathlib import Path
from models_store.cache import LocalCache
from models_store.store import ModelStore
from ondol.contract.errors import StoreUnavailable
folder, disk, store = map(Path, sys.argv[1:])
def refused(action):
    try:
        action()
    except StoreUnavailable as exc:
        return exc.code
small = ModelStore(str(disk / "store"))
print(refused(lambda: small.publish_folder(folder, "m:1")), small.list_manifests())
large = ModelStore(str(store))
digest = large.publish_folder(folder, "m:1").digest
cache = LocalCache(disk / "cache", 10**9)
print(refused(lambda: cache.materialise(large, digest, "m:1")))
print(sorted(path.name for path in (disk / "cache").iterdir()))
print([path for path in disk.rglob("*") if path.is_file() and path.stat().st_size > 100_000])
"""


def test_a_publisher_killed_before_the_manifest_leaves_no_version(tmp_path: Path) -> None:
    folder, url = make_version(tmp_path / "version"), str(tmp_path / "store")
    with held_program("publish", url, str(folder), "--hold"):
        pass
    store = ModelStore(url)
    assert len(store.list_blobs()) == 3
    assert store.list_manifests() == []
    manifest = store.publish_folder(folder, "m:1")
    cached = LocalCache(tmp_path / "cache", 100_000).materialise(store, manifest.digest, "m:1")
    assert contents(cached) == contents(folder)


@pytest.mark.parametrize("num_blobs", [1, 4])
def test_a_publisher_killed_anywhere_leaves_a_whole_version_or_none(tmp_path: Path, num_blobs: int) -> None:
    folder, url = make_version(tmp_path / "version", num_values=2_000_000), str(tmp_path / "store")
    for i in range(8):
        shutil.copy(make_version(tmp_path / f"part{i}", seed=i) / "model.safetensors", folder / f"part{i}.safetensors")
    store = ModelStore(url)
    with start_program("publish", url, str(folder)) as process:
        wait_until(lambda: len(store.list_blobs()) >= num_blobs, within_s=30, what="some blobs to be stored")
        process.kill()
    for digest in store.list_manifests():
        cached = LocalCache(tmp_path / "cache", 10**8).materialise(store, digest, "m:1")
        assert contents(cached) == contents(folder)
    digest = store.publish_folder(folder, "m:1").digest
    assert store.list_manifests() == [digest]


def test_a_blob_that_is_missing_is_an_error_that_names_the_version(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path / "store"))
    manifest = store.publish_folder(make_version(tmp_path / "version"), "m:1")
    blob = store.local_blob(manifest.files[0].sha256)
    assert blob is not None
    blob.unlink()
    with pytest.raises(ModelStoreError, match="m:1") as caught:
        LocalCache(tmp_path / "cache", 100_000).materialise(store, manifest.digest, "m:1")
    assert caught.value.code == "file_missing"


def test_a_full_disk_leaves_nothing_half_visible(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=1m tmpfs {disk} && exec"
    in_namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*in_namespace, f"{mount} true"], check=False).returncode:
        pytest.skip("this host lets nobody mount a small disk of his own")
    folder = make_version(tmp_path / "version", num_values=1_000_000)
    program = [sys.executable, "-c", f"'{_FULL_DISK_PROGRAM}'", str(folder), str(disk), str(tmp_path / "store")]
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run(
        [*in_namespace, f"{mount} {' '.join(program)}"], cwd=root, capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines() == ["storage_full []", "storage_full", "['.locks']", "[]"]
