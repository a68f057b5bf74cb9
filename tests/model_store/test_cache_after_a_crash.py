"""What a power cut or a killed process leaves in the cache costs nobody a model, and no room for ever."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from models_store.cache import LocalCache
from models_store.store import ModelStore
from tests.model_store.folders import contents, make_version
from tests.model_store.processes import held_program
from tests.model_store.test_cache import VERSION_BYTES

pytestmark = pytest.mark.integration

MARKER = ".ondol-verified"
"""Written last into a version's folder."""


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(str(tmp_path / "store"))


def publish(store: ModelStore, tmp_path: Path, seed: int) -> str:
    return store.publish_folder(make_version(tmp_path / f"version{seed}", seed=seed), f"m:{seed}").digest


def tear(folder: Path, content: bytes) -> None:
    """Leave of the marker what a power cut may leave: its name, and some or none of its bytes."""
    (folder / MARKER).chmod(0o644)
    (folder / MARKER).write_bytes(content)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != ".locks")


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b'{"model.safe'])
def test_a_torn_marker_costs_one_copy_and_no_other_model(store: ModelStore, tmp_path: Path, content: bytes) -> None:
    first, second = (publish(store, tmp_path, seed) for seed in (1, 2))
    cache = LocalCache(tmp_path / "cache", 100_000)
    tear(cache.materialise(store, first, "m:1"), content)
    assert contents(cache.materialise(store, second, "m:2")) == contents(tmp_path / "version2")
    assert contents(cache.materialise(store, first, "m:1")) == contents(tmp_path / "version1")


def test_a_torn_version_that_goes_while_it_is_counted_costs_no_other_model(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn, new = (publish(store, tmp_path, seed) for seed in (1, 2))
    cache = LocalCache(tmp_path / "cache", 100_000)
    tear(cache.materialise(store, torn, "m:1"), b"")
    is_file = Path.is_file

    def gone_at_once(path: Path) -> bool:
        """What was a file a moment ago: another process that wants the version takes the torn one away."""
        was_file = is_file(path)
        shutil.rmtree(tmp_path / "cache" / torn, ignore_errors=True)
        return was_file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_file", gone_at_once)
        folder = cache.materialise(store, new, "m:2")
    assert contents(folder) == contents(tmp_path / "version2")


def test_a_torn_version_that_nobody_wants_goes_first(store: ModelStore, tmp_path: Path) -> None:
    torn, kept, new = (publish(store, tmp_path, seed) for seed in (1, 2, 3))
    cache = LocalCache(tmp_path / "cache", 2 * VERSION_BYTES)
    cache.materialise(store, kept, "m:2")
    tear(cache.materialise(store, torn, "m:1"), b"")  # the last one that was used
    cache.materialise(store, new, "m:3")
    assert names(tmp_path / "cache") == sorted([kept, new])


@pytest.mark.parametrize("is_linked", [True, False])
def test_a_version_is_on_the_disk_before_it_has_its_name(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_linked: bool
) -> None:
    digest = publish(store, tmp_path, 1)
    if not is_linked:
        monkeypatch.setattr(ModelStore, "local_blob", lambda *_: None)
    root, synced, sync = tmp_path / "cache", [], os.fsync

    def noted(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(root)
        synced.append("/".join(path.parts[1:]) if (root / digest).exists() is False else f"named: {path}")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    LocalCache(root, 100_000).materialise(store, digest, "m:1")
    files = [] if is_linked else ["1_Pooling/config.json", "README.md", "model.safetensors"]
    assert sorted(synced[:-1]) == sorted([*files, MARKER, "", "1_Pooling"])
    assert synced[-1] == "named: ."


def test_what_killed_processes_left_is_gone_with_the_next_version(store: ModelStore, tmp_path: Path) -> None:
    first, second, third = (publish(store, tmp_path, seed) for seed in (1, 2, 3))
    root, room = tmp_path / "cache", str(VERSION_BYTES)
    LocalCache(root, VERSION_BYTES).materialise(store, first, "m:1")
    with held_program("fill", store.url, str(root), second, "--hold-removal", "--max-bytes", room):
        assert [name.partition("-")[0] for name in names(root)] == [".trash"]
    with held_program("fill", store.url, str(root), third, "--hold", "--max-bytes", room):
        LocalCache(root, 100_000).materialise(store, first, "m:1")
        assert [name.partition("-")[0] for name in names(root)] == [".staging", first], "of one that lives"
    LocalCache(root, 100_000).materialise(store, second, "m:2")
    assert names(root) == sorted([first, second])
