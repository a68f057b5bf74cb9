"""The local cache holds verified copies only, within its size, whoever else uses it."""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from pathlib import Path

import pytest

from models_store.cache import LocalCache
from models_store.manifest import Manifest
from models_store.store import ModelStore
from ondol.contract.errors import ChecksumMismatch, ModelStoreError, StoreUnavailable
from tests.model_store.folders import contents, make_version
from tests.model_store.processes import held_program, start_program

pytestmark = pytest.mark.integration

VERSION_BYTES = 4_200  # a little more than one version of the fixture has


@pytest.fixture
def local_store(tmp_path: Path) -> ModelStore:
    return ModelStore(str(tmp_path / "store"))


@pytest.fixture
def remote_store() -> ModelStore:
    return ModelStore(f"memory://{uuid.uuid4().hex}")


def _publish(store: ModelStore, tmp_path: Path, seed: int = 0) -> Manifest:
    return store.publish_folder(make_version(tmp_path / f"version{seed}", seed=seed), f"m:{seed}")


def _flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["local_store", "remote_store"])
def test_a_materialised_version_has_exactly_the_published_files(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    store: ModelStore = request.getfixturevalue(kind)
    manifest = _publish(store, tmp_path)
    folder = LocalCache(tmp_path / "cache", 100_000).materialise(store, manifest.digest, "m:0")
    assert contents(folder) == contents(tmp_path / "version0")


def test_a_second_call_needs_no_store(tmp_path: Path, local_store: ModelStore) -> None:
    manifest = _publish(local_store, tmp_path)
    first = LocalCache(tmp_path / "cache", 100_000).materialise(local_store, manifest.digest, "m:0")
    shutil.rmtree(tmp_path / "store")
    again = LocalCache(tmp_path / "cache", 100_000).materialise(local_store, manifest.digest, "m:0")
    assert again == first
    assert contents(again) == contents(tmp_path / "version0")


def test_a_flipped_bit_in_the_store_is_a_checksum_mismatch(tmp_path: Path, local_store: ModelStore) -> None:
    manifest = _publish(local_store, tmp_path)
    weights = next(file for file in manifest.files if file.path == "model.safetensors")
    blob = local_store.local_blob(weights.sha256)
    assert blob is not None
    _flip_bit(blob)
    cache = LocalCache(tmp_path / "cache", 100_000)
    with pytest.raises(ChecksumMismatch) as caught:
        cache.materialise(local_store, manifest.digest, "m:0")
    assert (caught.value.ref, caught.value.file, caught.value.expected) == ("m:0", weights.path, weights.sha256)
    assert not caught.value.retryable
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".locks"]


@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_cut_or_missing_cached_file_is_brought_again(tmp_path: Path, remote_store: ModelStore, damage: str) -> None:
    manifest = _publish(remote_store, tmp_path)
    cache = LocalCache(tmp_path / "cache", 100_000)
    weights = cache.materialise(remote_store, manifest.digest, "m:0") / "model.safetensors"
    if damage == "cut":
        os.truncate(weights, 10)
    else:
        weights.unlink()
    assert contents(cache.materialise(remote_store, manifest.digest, "m:0")) == contents(tmp_path / "version0")


def test_the_least_recently_used_version_goes_first(tmp_path: Path, local_store: ModelStore) -> None:
    cache = LocalCache(tmp_path / "cache", 2 * VERSION_BYTES)
    digests = [_publish(local_store, tmp_path, seed).digest for seed in range(3)]
    folders = [cache.materialise(local_store, digest, "m") for digest in (*digests[:2], digests[0])]
    cache.materialise(local_store, digests[2], "m")
    assert [folder.exists() for folder in folders[:2]] == [True, False]
    kept = [tmp_path / "cache" / digest for digest in (digests[0], digests[2])]
    assert sum(len(data) for folder in kept for data in contents(folder).values()) <= 2 * VERSION_BYTES


def test_a_pinned_version_stays_until_it_is_unpinned(tmp_path: Path, local_store: ModelStore) -> None:
    cache = LocalCache(tmp_path / "cache", VERSION_BYTES)
    first, second = (_publish(local_store, tmp_path, seed).digest for seed in range(2))
    folder = cache.materialise(local_store, first, "m:1", pin=True)
    with pytest.raises(StoreUnavailable, match="in use") as caught:
        cache.materialise(local_store, second, "m:2")
    assert caught.value.code == "storage_full"
    assert folder.exists()
    cache.unpin(first)
    assert cache.materialise(local_store, second, "m:2").exists()
    assert not folder.exists()
    with pytest.raises(ValueError, match="not pinned"):
        cache.unpin(first)


def test_what_another_process_uses_is_not_removed_until_it_dies(tmp_path: Path, local_store: ModelStore) -> None:
    first, second = (_publish(local_store, tmp_path, seed).digest for seed in range(2))
    cache = LocalCache(tmp_path / "cache", VERSION_BYTES)
    with held_program("pin", local_store.url, str(tmp_path / "cache"), first), pytest.raises(StoreUnavailable):
        cache.materialise(local_store, second, "m:2")
    assert cache.materialise(local_store, second, "m:2").exists()


def test_a_version_larger_than_the_cache_is_refused_with_the_sizes(tmp_path: Path, local_store: ModelStore) -> None:
    manifest = _publish(local_store, tmp_path)
    with pytest.raises(ModelStoreError, match=str(manifest.size_bytes)) as caught:
        LocalCache(tmp_path / "cache", 100).materialise(local_store, manifest.digest, "m:0")
    assert caught.value.code == "cache_too_small"


def test_a_process_killed_while_filling_leaves_nothing_that_lasts(tmp_path: Path, local_store: ModelStore) -> None:
    manifest = _publish(local_store, tmp_path)
    root = tmp_path / "cache"
    with held_program("fill", local_store.url, str(root), manifest.digest, "--hold"):
        assert not (root / manifest.digest).exists()
    folder = LocalCache(root, 100_000).materialise(local_store, manifest.digest, "m:0")
    assert contents(folder) == contents(tmp_path / "version0")
    assert sorted(path.name for path in root.iterdir()) == sorted([".locks", manifest.digest])


def test_processes_and_threads_that_want_the_same_version_all_get_it(tmp_path: Path, local_store: ModelStore) -> None:
    manifest = _publish(local_store, tmp_path)
    root = tmp_path / "cache"
    cache, got = LocalCache(root, 100_000), []
    processes = [start_program("fill", local_store.url, str(root), manifest.digest) for _ in range(3)]
    threads = [
        threading.Thread(target=lambda: got.append(cache.materialise(local_store, manifest.digest, "m:0")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outputs = []
    for process in processes:
        with process:
            outputs.append(process.communicate()[0].strip())
    assert set(outputs) == {str(root / manifest.digest)} == set(map(str, got))
    assert len(got) == 4
    assert contents(root / manifest.digest) == contents(tmp_path / "version0")
