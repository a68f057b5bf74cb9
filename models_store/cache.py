"""The verified local cache: model versions as plain folders on a local disk, bounded in size.

`root/<manifest digest>/` is a version's folder; it appears whole, after every digest was compared. `root/.locks/` holds
the locks that let several workers of one host share a cache.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from models_store.cache_locks import Pins, exclusive, exclusive_if_free
from models_store.copying import copy_hashed, hash_file, sync_folder
from models_store.failures import translated
from models_store.manifest import Manifest, ManifestFile, check_digest
from models_store.store import ModelStore
from ondol.contract.errors import ChecksumMismatch, ModelStoreError, StoreUnavailable

_MARKER = ".ondol-verified"
_STAGING = ".staging-"
_TRASH = ".trash-"


@dataclass(frozen=True, slots=True)
class _Entry:
    digest: str
    size_bytes: int
    used_at: float


class LocalCache:
    """A cache under `root` of at most `max_bytes`, shared by threads and processes of one host."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._locks = root / ".locks"
        self._pins = Pins()
        with translated(f"opening the model cache {root}"):
            self._locks.mkdir(parents=True, exist_ok=True)

    def materialise(self, store: ModelStore, manifest_digest: str, ref: str, *, pin: bool = False) -> Path:
        """A local folder with exactly the version's files, each compared with its digest when it was brought here.

        Blocks while files are copied; a second call costs a few file status calls. With `pin` the folder is kept
        until `unpin`. ChecksumMismatch (permanent) if the store is damaged; StoreUnavailable (retryable) if it does
        not answer, if the disk is full, or if everything else in the cache is pinned and there is no room.
        """
        folder = self._root / check_digest(manifest_digest)
        with translated(f"caching {ref}"):
            self._pins.add(self._use_lock(manifest_digest))
            try:
                if not self._is_whole(folder):
                    self._fill(store, manifest_digest, ref)
                _touch(folder / _MARKER)
            except BaseException:
                self.unpin(manifest_digest)
                raise
        if not pin:
            self.unpin(manifest_digest)
        return folder

    def unpin(self, manifest_digest: str) -> None:
        """Take back one pin of `materialise(…, pin=True)`; ValueError if there is none."""
        self._pins.remove(self._use_lock(manifest_digest))

    def _is_whole(self, folder: Path) -> bool:
        """Whether the folder was verified and no file was cut, removed or exchanged by one of another size since."""
        try:
            sizes = json.loads((folder / _MARKER).read_bytes())
            return all((folder / path).stat().st_size == size for path, size in sizes.items())
        except (FileNotFoundError, ValueError):  # a power cut may leave the marker's name without its bytes
            return False

    def _fill(self, store: ModelStore, digest: str, ref: str) -> None:
        folder = self._root / digest
        with exclusive(self._locks / f"{digest}.fill"):
            if self._is_whole(folder):
                return
            self._remove(digest)
            for leftover in self._root.glob(f"{_STAGING}{digest}-*"):
                shutil.rmtree(leftover)
            manifest = store.read_manifest(digest)
            self._make_room(manifest.size_bytes, ref)
            staging = self._root / f"{_STAGING}{digest}-{uuid.uuid4().hex}"
            try:
                self._stage(store, manifest, staging, ref)
                staging.rename(folder)
                sync_folder(self._root)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise

    def _stage(self, store: ModelStore, manifest: Manifest, staging: Path, ref: str) -> None:
        staging.mkdir()
        for file in manifest.files:
            target = staging / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            actual = _bring(store, file, target)
            if actual != file.sha256:
                raise ChecksumMismatch(ref=ref, file=file.path, expected=file.sha256, actual=actual)
        marker = {file.path: file.size_bytes for file in manifest.files}
        with (staging / _MARKER).open("xb") as writer:
            writer.write(json.dumps(marker).encode())
            _finish(writer)
        for inner, _, _ in os.walk(staging):
            sync_folder(Path(inner))

    def _make_room(self, size_bytes: int, ref: str) -> None:
        if size_bytes > self._max_bytes:
            raise ModelStoreError(
                f"{ref} has {size_bytes} bytes, the model cache may hold {self._max_bytes}; enlarge the cache",
                code="cache_too_small",
            )
        with exclusive(self._locks / "evict"):
            self._remove_leftovers()
            entries = sorted(self._entries(), key=lambda entry: entry.used_at)
            excess = sum(entry.size_bytes for entry in entries) + size_bytes - self._max_bytes
            for entry in entries:
                if excess > 0 and self._evict(entry.digest):
                    excess -= entry.size_bytes
            if excess > 0:
                raise StoreUnavailable(
                    f"no room for {ref}: the model cache lacks {excess} bytes and the rest is in use",
                    code="storage_full",
                )

    def _remove_leftovers(self) -> None:
        """What processes that were killed had begun to fill or to remove: it is counted nowhere."""
        for trash in self._root.glob(f"{_TRASH}*"):
            shutil.rmtree(trash, ignore_errors=True)
        for staging in self._root.glob(f"{_STAGING}*"):
            digest = staging.name.removeprefix(_STAGING).partition("-")[0]
            with exclusive_if_free(self._locks / f"{digest}.fill") as is_free:
                if is_free:
                    shutil.rmtree(staging, ignore_errors=True)

    def _evict(self, digest: str) -> bool:
        with exclusive_if_free(self._use_lock(digest)) as is_free:
            if is_free:
                self._remove(digest)
            return is_free

    def _remove(self, digest: str) -> None:
        """Renamed first: nobody ever sees half a folder."""
        trash = self._root / f"{_TRASH}{uuid.uuid4().hex}"
        try:
            (self._root / digest).rename(trash)
        except FileNotFoundError:
            return
        shutil.rmtree(trash, ignore_errors=True)

    def _entries(self) -> list[_Entry]:
        entries = []
        for marker in self._root.glob(f"*/{_MARKER}"):
            if marker.parent.name.startswith("."):
                continue
            with suppress(FileNotFoundError):  # another process evicted it meanwhile, or brings it here anew
                entries.append(_entry(marker))
        return entries

    def _use_lock(self, digest: str) -> Path:
        return self._locks / f"{digest}.use"


def _entry(marker: Path) -> _Entry:
    """The version that the marker belongs to; FileNotFoundError when it goes meanwhile."""
    folder = marker.parent
    try:
        return _Entry(folder.name, sum(json.loads(marker.read_bytes()).values()), marker.stat().st_mtime)
    except ValueError:  # torn by a power cut: it takes its room until it goes, before all others
        return _Entry(folder.name, _size_on_disk(folder), used_at=0.0)


def _size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _touch(path: Path) -> None:
    """The kernel's own stamp moves in steps of milliseconds, too coarse to order two uses."""
    now_ns = time.time_ns()
    os.utime(path, ns=(now_ns, now_ns))


def _bring(store: ModelStore, file: ManifestFile, target: Path) -> str:
    """Put the blob at `target` and give the digest of what is there; shares the store's own file where it can."""
    blob = store.local_blob(file.sha256)
    if blob is not None and _link(blob, target):
        return hash_file(target)
    with store.open_blob(file.sha256) as reader, target.open("xb") as writer:
        actual = copy_hashed(reader, writer)
        _finish(writer)
    return actual


def _link(blob: Path, target: Path) -> bool:
    try:
        os.link(blob, target)
    except FileNotFoundError:
        raise
    except OSError:
        return False  # another filesystem, too many links, or none allowed: copy
    return True


def _finish(file: BinaryIO) -> None:
    """On the disk before the folder has its name: what is found whole there after a power cut is whole."""
    file.flush()
    os.fchmod(file.fileno(), 0o444)
    os.fsync(file.fileno())
