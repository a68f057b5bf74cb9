"""The bytes of uploaded files: one blob a file id, `<store>/files/<id>`, which appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, cast

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from models_store.copying import copy_hashed, durable_file, make_folder, sync_folder
from models_store.failures import translated
from models_store.store import is_object_store
from ondol.contract.errors import ChecksumMismatch, FileNotFound, ModelStoreError
from ondol.contract.files import check_file_id

BLOCK_BYTES = 8 * 1024 * 1024
"""What a writer to a remote store holds in memory before it sends."""
_PARTIAL = ".partial-"

Existing = Callable[[Sequence[str]], set[str]]
"""Those of the file ids that are recorded in SQL."""


class FileBlobs:
    """Blobs below `<store>/files`; may be shared by threads, and every method blocks.

    Every method raises StoreUnavailable (a retry can help) where the filesystem fails, StorageFull where it is full.
    """

    def __init__(self, store_url: str) -> None:
        self._fs: fsspec.AbstractFileSystem
        self._fs, root = url_to_fs(store_url)
        self._root = f"{root.rstrip('/')}/files"

    def create(self, file_id: str) -> FileWriter:
        """A writer of the blob; nothing is made before its first byte comes."""
        return FileWriter(self._fs, self._path(file_id))

    @contextmanager
    def open(self, file_id: str) -> Iterator[IO[bytes]]:
        """The bytes, unverified; FileNotFound if they are not there."""
        path = self._path(file_id)
        with translated(f"reading file {file_id}"):
            try:
                file = self._fs.open(path, "rb")
            except FileNotFoundError as exc:
                raise FileNotFound(f"the bytes of file {file_id} are not in the store", param="file_id") from exc
            with file:
                yield cast(IO[bytes], file)

    def fetch(self, file_id: str, target: Path, *, sha256: str, size_bytes: int) -> None:
        """Copy the blob to the local path `target`, which appears whole and verified or not at all.

        FileNotFound if it is not there, ChecksumMismatch if it is not what was uploaded (permanent).
        """
        staging = target.with_name(f"{target.name}{_PARTIAL}{uuid.uuid4().hex}")
        with self.open(file_id) as source, durable_file(target, staging) as writer:
            actual = copy_hashed(source, writer)
            num_bytes = writer.tell()
            if actual != sha256 or num_bytes != size_bytes:
                raise ChecksumMismatch(ref=f"{num_bytes} bytes", file=file_id, expected=sha256, actual=actual)

    def delete(self, file_id: str) -> None:
        """Remove the blob; one that is gone already is no error."""
        self._delete(self._path(file_id))

    def delete_orphans(self, existing: Existing, *, older_than: timedelta) -> list[str]:
        """Remove blobs that no row names and uploads that never ended; gives their names.

        `older_than` must exceed the time between two pieces of an upload, and between a blob and its row.
        """
        old = self._old_names(older_than)
        ids = [name for name in old if _PARTIAL not in name]
        orphans = sorted(set(old) - existing(ids))
        for name in orphans:
            self._delete(f"{self._root}/{name}")
        return orphans

    def _old_names(self, older_than: timedelta) -> list[str]:
        names = []
        with translated("listing files"):
            self._fs.invalidate_cache()
            for path in self._fs.ls(self._root, detail=False) if self._fs.exists(self._root) else ():
                with suppress(FileNotFoundError):  # renamed or deleted since it was listed
                    modified: datetime = self._fs.modified(path)
                    aware = modified if modified.tzinfo else modified.replace(tzinfo=UTC)
                    if datetime.now(UTC) - aware >= older_than:
                        names.append(str(path).rsplit("/", 1)[-1])
        return names

    def _delete(self, path: str) -> None:
        with translated(f"deleting {path.rsplit('/', 1)[-1]}"), suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def _path(self, file_id: str) -> str:
        return f"{self._root}/{check_file_id(file_id)}"


class FileWriter:
    """One blob being written: `write` its pieces, then `commit`, or `abort` at any time; from any thread."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, path: str) -> None:
        self._fs = filesystem
        self._path = path
        self._is_local = isinstance(filesystem, LocalFileSystem)
        # An object that is being uploaded is not seen before its end; elsewhere a partial file is, under its own name.
        self._is_renamed = not is_object_store(filesystem)
        self._staging = f"{path}{_PARTIAL}{uuid.uuid4().hex}" if self._is_renamed else path
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._has_ended = False
        self._lock = threading.Lock()
        self.num_bytes = 0

    @property
    def sha256(self) -> str:
        """Digest in hex of what was written so far."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Append all of `data`."""
        with self._lock, translated(f"writing {self._name}"):
            if self._has_ended:
                raise ModelStoreError(f"{self._name} is no longer being written")
            self._opened().write(data)
            self._digest.update(data)
            self.num_bytes += len(data)

    def commit(self) -> None:
        """Make the blob appear; on a local disk it survives a power cut from here on."""
        with self._lock, translated(f"writing {self._name}"):
            file = self._opened()
            if self._is_local:
                file.flush()
                os.fchmod(file.fileno(), 0o444)
                os.fsync(file.fileno())
            file.close()
            if self._is_local:
                Path(self._staging).replace(self._path)
                sync_folder(Path(self._path).parent)
            elif self._is_renamed:
                self._fs.mv(self._staging, self._path)
            self._has_ended = True

    def abort(self) -> None:
        """Leave nothing behind; after `commit` this changes nothing."""
        with self._lock:
            if self._has_ended:
                return
            self._has_ended = True
            if self._file is not None:
                with translated(f"removing the partial {self._name}"):
                    self._discard(self._file)

    @property
    def _name(self) -> str:
        return f"file {self._path.rsplit('/', 1)[-1]}"

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            if self._is_local:
                make_folder(Path(self._path).parent)
                self._file = Path(self._staging).open("xb")  # noqa: SIM115 - closed by commit or abort
            else:
                self._fs.makedirs(self._fs._parent(self._path), exist_ok=True)
                self._file = cast(IO[bytes], self._fs.open(self._staging, "wb", block_size=BLOCK_BYTES))
        return self._file

    def _discard(self, file: IO[bytes]) -> None:
        if not self._is_renamed:
            file.discard()  # type: ignore[attr-defined]  # of fsspec's buffered files: ends the upload without an object
            file.closed = True  # type: ignore[misc]  # otherwise its finaliser would complete the upload
            return
        with suppress(OSError):  # what could not be flushed is not wanted either
            file.close()
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._staging)
