"""A version is exactly the files that were published, stored once, on any filesystem."""

from __future__ import annotations

import errno
import json
import os
import uuid
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from models_store.failures import translated
from models_store.store import ModelStore
from ondol.contract.errors import ChecksumMismatch, ModelRefused, ModelStoreError, StoreUnavailable
from tests.model_store.folders import contents, make_version

pytestmark = pytest.mark.unit


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ModelStore:
    url = f"file://{tmp_path}/store" if request.param == "file" else f"memory://{uuid.uuid4().hex}"
    return ModelStore(url)


def test_a_published_version_is_read_back_byte_for_byte(store: ModelStore, tmp_path: Path) -> None:
    folder = make_version(tmp_path / "version")
    manifest = store.publish_folder(folder, "m:1")
    read = store.read_manifest(manifest.digest)
    assert read == manifest
    found = {}
    for file in read.files:
        with store.open_blob(file.sha256) as blob:
            found[file.path] = blob.read()
    assert found == contents(folder)
    assert manifest.size_bytes == sum(map(len, found.values()))


def test_the_digest_depends_on_names_and_bytes_only(store: ModelStore, tmp_path: Path) -> None:
    first = store.publish_folder(make_version(tmp_path / "a"), "m:1")
    again = store.publish_folder(make_version(tmp_path / "b"), "m:2")
    other = store.publish_folder(make_version(tmp_path / "c", seed=1), "m:3")
    assert first == again
    assert other.digest != first.digest
    assert sorted(store.list_manifests()) == sorted([first.digest, other.digest])


def test_equal_files_are_stored_once(store: ModelStore, tmp_path: Path) -> None:
    store.publish_folder(make_version(tmp_path / "a"), "m:1")
    store.publish_folder(make_version(tmp_path / "b", seed=1), "m:2")
    assert len(store.list_blobs()) == 4  # two weights; one README and one pooling configuration for both


@pytest.mark.parametrize("name", ["run.py", "pytorch_model.bin", "tokenizer.model", "a b.txt", ".hidden.json"])
def test_only_safetensors_json_and_text_are_stored(store: ModelStore, tmp_path: Path, name: str) -> None:
    folder = make_version(tmp_path / "version")
    (folder / name).write_text("x")
    with pytest.raises(ModelRefused, match=name.replace(".", r"\.")):
        store.publish_folder(folder, "m:1")
    assert store.list_blobs() == []


def test_links_are_refused(store: ModelStore, tmp_path: Path) -> None:
    folder = make_version(tmp_path / "version")
    secret = tmp_path / "secret.txt"
    secret.write_text("x")
    (folder / "vocab.txt").symlink_to(secret)
    with pytest.raises(ModelRefused, match=r"vocab\.txt is a link"):
        store.publish_folder(folder, "m:1")


def test_a_pickle_renamed_to_safetensors_is_refused(store: ModelStore, tmp_path: Path) -> None:
    folder = make_version(tmp_path / "version")
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ModelRefused, match="is a pickle"):
        store.publish_folder(folder, "m:1")


@pytest.mark.parametrize("path", ["../escape.txt", "/etc/escape.txt", "a/../../b.txt", "a\\b.txt", "", "a//b.txt"])
def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path, path: str) -> None:
    store = ModelStore(str(tmp_path / "store"))
    files = [{"path": path, "sha256": "0" * 64, "size_bytes": 1}]
    data = json.dumps({"files": files, "format": 1}, sort_keys=True, separators=(",", ":")).encode()
    digest = sha256(data).hexdigest()
    (tmp_path / "store" / "manifests").mkdir(parents=True)
    (tmp_path / "store" / "manifests" / f"{digest}.json").write_bytes(data)
    with pytest.raises(ModelStoreError, match="not readable"):
        store.read_manifest(digest)


def test_a_damaged_manifest_is_a_checksum_mismatch(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path / "store"))
    manifest = store.publish_folder(make_version(tmp_path / "version"), "m:1")
    path = tmp_path / "store" / "manifests" / f"{manifest.digest}.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"README", b"REAMDE"))
    with pytest.raises(ChecksumMismatch):
        store.read_manifest(manifest.digest)


@pytest.mark.parametrize("digest", ["0" * 64, "../../etc/passwd", ""])
def test_an_unknown_digest_is_a_missing_file(store: ModelStore, digest: str) -> None:
    with pytest.raises(ModelStoreError) as caught:
        store.read_manifest(digest)
    assert (caught.value.code, caught.value.retryable) == ("file_missing", False)


def test_publishing_again_repairs_a_damaged_blob(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path / "store"))
    folder = make_version(tmp_path / "version")
    manifest = store.publish_folder(folder, "m:1")
    blob = store.local_blob(manifest.files[-1].sha256)
    assert blob is not None
    blob.chmod(0o644)
    blob.write_bytes(bytes(blob.stat().st_size))
    store.publish_folder(folder, "m:1")
    assert sha256(blob.read_bytes()).hexdigest() == blob.name


def test_collection_takes_only_old_blobs_that_no_manifest_names(store: ModelStore, tmp_path: Path) -> None:
    kept = store.publish_folder(make_version(tmp_path / "a"), "m:1")
    dropped = store.publish_folder(make_version(tmp_path / "b", seed=1), "m:2")
    store.delete_manifest(dropped.digest)
    assert store.delete_unreferenced_blobs(timedelta(hours=1)) == []
    deleted = store.delete_unreferenced_blobs(timedelta(0))
    assert {blob.digest for blob in deleted} == {f.sha256 for f in dropped.files} - {f.sha256 for f in kept.files}
    assert {blob.digest for blob in store.list_blobs()} == {f.sha256 for f in kept.files}


def test_publishing_again_makes_an_old_blob_young(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path / "store"))
    manifest = store.publish_folder(make_version(tmp_path / "a"), "m:1")
    store.delete_manifest(manifest.digest)
    for blob in store.list_blobs():
        os.utime(store.local_blob(blob.digest) or "", (0, 0))
    store.publish_folder(tmp_path / "a", "m:2")
    store.delete_manifest(manifest.digest)
    assert store.delete_unreferenced_blobs(timedelta(hours=1)) == []


def test_a_store_that_takes_no_writes_says_so(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises(StoreUnavailable) as caught:
        ModelStore(str(tmp_path / "store")).publish_folder(make_version(tmp_path / "version"), "m:1")
    assert caught.value.retryable


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_a_code_of_its_own(number: int) -> None:
    with pytest.raises(StoreUnavailable) as caught, translated("writing"):
        raise OSError(number, "full")
    assert caught.value.code == "storage_full"


@pytest.mark.parametrize("url", ["nosuchscheme://bucket/models"])
def test_an_unknown_kind_of_store_is_named(url: str) -> None:
    with pytest.raises(ModelStoreError, match="nosuchscheme") as caught:
        ModelStore(url)
    assert caught.value.code == "bad_store_url"
