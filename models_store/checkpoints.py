"""Checkpoints of fine-tunes: one folder a step and attempt, committed by a manifest of digests that is written last.

Layout under the store's root: `checkpoints/<job>/<step>-<attempt>/<file>` and, last, `manifest.json`. What is read back
is compared byte by byte with its digest, because a checkpoint holds the one kind of pickle that is ever loaded.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from models_store.copying import CANNOT_LINK, copy_hashed, durable_file, link_durable, make_folder
from models_store.failures import translated
from models_store.manifest import ManifestFile, make_manifest
from ondol.contract.errors import ChecksumMismatch, ModelStoreError

MANIFEST_FILE = "manifest.json"
_FOLDER_NAME = re.compile(r"(\d+)-(\d+)")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class CommittedCheckpoint:
    """What SQL keeps of a committed checkpoint."""

    manifest_digest: str
    size_bytes: int


class CheckpointStore:
    """Checkpoints below `<store>/checkpoints`; every method blocks. StoreUnavailable when the filesystem fails."""

    def __init__(self, store_url: str) -> None:
        self._fs: fsspec.AbstractFileSystem
        self._fs, root = url_to_fs(store_url)
        self._root = f"{root.rstrip('/')}/checkpoints"
        self._is_local = isinstance(self._fs, LocalFileSystem)

    def commit(self, folder: Path, *, job_id: str, step: int, attempt: int) -> CommittedCheckpoint:
        """Store all files of `folder`, then the manifest. None of its files may ever be written to again.

        A store on the same disk shares the files with `folder`, which may be deleted whenever its owner likes.

        A file that cannot be stored leaves no manifest, so the checkpoint does not exist.
        """
        target = self._folder(job_id, step, attempt)
        with translated(f"storing checkpoint {step} of {job_id}"):
            files = [self._put(path, f"{target}/{path.name}") for path in _files_of(folder)]
            manifest, data = make_manifest(files)
            self._write(f"{target}/{MANIFEST_FILE}", data)
        return CommittedCheckpoint(manifest.digest, manifest.size_bytes)

    def fetch(self, target: Path, *, job_id: str, step: int, attempt: int, manifest_digest: str) -> Path:
        """The checkpoint as the new folder `target`, every digest compared.

        ChecksumMismatch, or ModelStoreError with code `file_missing`: the checkpoint is damaged or torn, and `target`
        is not there.
        """
        source = self._folder(job_id, step, attempt)
        ref = f"checkpoint {step} of {job_id}"
        try:
            target.mkdir(parents=True)
            with translated(f"reading {ref}"):
                for file in self._manifest(f"{source}/{MANIFEST_FILE}", manifest_digest, ref):
                    self._bring(f"{source}/{file.path}", target / file.path, file, ref)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        return target

    def delete(self, *, job_id: str, step: int, attempt: int) -> None:
        """Delete one checkpoint, its manifest first; one that is gone already is no error."""
        folder = self._folder(job_id, step, attempt)
        with translated(f"deleting checkpoint {step} of {job_id}"):
            if self._fs.exists(f"{folder}/{MANIFEST_FILE}"):
                self._fs.rm_file(f"{folder}/{MANIFEST_FILE}")
            if self._fs.exists(folder):
                self._fs.rm(folder, recursive=True)

    def delete_unknown(self, job_id: str, known: Collection[tuple[int, int]], *, before_attempt: int) -> None:
        """Delete what attempts before `before_attempt` left, whole or not, apart from the `known` (step, attempt)."""
        root = f"{self._root}/{job_id}"
        with translated(f"listing the checkpoints of {job_id}"):
            names = [path.rstrip("/").rpartition("/")[2] for path in self._fs.ls(root, detail=False)]
        for found in filter(None, map(_FOLDER_NAME.fullmatch, names)):
            step, attempt = int(found[1]), int(found[2])
            if attempt < before_attempt and (step, attempt) not in known:
                self.delete(job_id=job_id, step=step, attempt=attempt)

    def delete_all(self, job_id: str) -> None:
        """Delete every checkpoint of a job."""
        folder = f"{self._root}/{job_id}"
        with translated(f"deleting the checkpoints of {job_id}"):
            if self._fs.exists(folder):
                self._fs.rm(folder, recursive=True)

    def _folder(self, job_id: str, step: int, attempt: int) -> str:
        return f"{self._root}/{job_id}/{step}-{attempt}"

    def _put(self, source: Path, target: str) -> ManifestFile:
        with source.open("rb") as reader:
            if self._is_local:
                digest = self._link_or_copy(reader, source, Path(target))
            else:
                self._fs.makedirs(self._fs._parent(target), exist_ok=True)
                with self._fs.open(target, "wb") as remote:
                    digest = copy_hashed(reader, remote)
        return ManifestFile(source.name, source.stat().st_size, digest)

    def _link_or_copy(self, reader: BinaryIO, source: Path, target: Path) -> str:
        """A second name for a file that never changes, which costs no writing; a copy where names cannot be shared."""
        make_folder(target.parent)
        try:
            link_durable(source, target)
        except OSError as exc:
            if exc.errno not in CANNOT_LINK:
                raise
            with durable_file(target, target.with_name(f"{target.name}.tmp")) as writer:
                return copy_hashed(reader, writer)
        return copy_hashed(reader, None)

    def _write(self, path: str, data: bytes) -> None:
        if self._is_local:
            with durable_file(Path(path), Path(f"{path}.tmp")) as file:
                file.write(data)
        else:
            self._fs.pipe_file(path, data)

    def _manifest(self, path: str, expected: str, ref: str) -> list[ManifestFile]:
        data = self._fs.cat_file(path)
        try:
            listed = json.loads(data)["files"]
            files = [ManifestFile(item["path"], item["size_bytes"], item["sha256"]) for item in listed]
        except (ValueError, LookupError, TypeError, RecursionError) as exc:
            raise ModelStoreError(f"the manifest of {ref} is not readable", code="file_missing") from exc
        actual, _ = make_manifest(files)
        if actual.digest != expected:
            raise ChecksumMismatch(ref=ref, file=MANIFEST_FILE, expected=expected, actual=actual.digest)
        if not all(_FILE_NAME.fullmatch(file.path) for file in files):
            raise ModelStoreError(f"the manifest of {ref} names a file that leads elsewhere", code="file_missing")
        return files

    def _bring(self, source: str, target: Path, file: ManifestFile, ref: str) -> None:
        with self._fs.open(source, "rb") as reader, target.open("xb") as writer:
            actual = copy_hashed(reader, writer)
        if actual != file.sha256:
            raise ChecksumMismatch(ref=ref, file=file.path, expected=file.sha256, actual=actual)


def _files_of(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        if _FILE_NAME.fullmatch(path.name) is None:
            raise ModelStoreError(f"a checkpoint may not hold a file named {path.name!r}")
    return files
