"""Results too large for SQL: one file a job and attempt, written before the row that names it."""

from __future__ import annotations

import hashlib
from contextlib import suppress

import fsspec
from fsspec.core import url_to_fs

from models_store.failures import translated
from models_store.file_blobs import FileWriter
from ondol.contract.errors import ChecksumMismatch


class ResultBlobs:
    """Blobs `<store>/results/<job>/<attempt>.bin`; may be shared by threads, and every method blocks.

    Every method raises StoreUnavailable (a retry can help) where the filesystem fails, StorageFull where it is full.
    """

    def __init__(self, store_url: str) -> None:
        self._fs: fsspec.AbstractFileSystem
        self._fs, root = url_to_fs(store_url)
        self._root = f"{root.rstrip('/')}/results"

    def write(self, job_id: str, attempt: int, data: bytes) -> str:
        """Store the bytes, which appear whole or not at all; the path to keep in SQL.

        On a local disk they survive a power cut from here on, so the row may say that the job succeeded.
        """
        path = f"{job_id}/{attempt}.bin"
        writer = FileWriter(self._fs, f"{self._root}/{path}")
        try:
            writer.write(data)
            writer.commit()
        finally:
            writer.abort()
        return path

    def read(self, path: str, *, sha256: str | None = None) -> bytes:
        """The bytes at a stored path; ChecksumMismatch when they are not what was written.

        ModelStoreError with code `file_missing` when they are gone: trying again does not bring them back.
        """
        with translated(f"the result {path} could not be read from the store"):
            data: bytes = self._fs.cat_file(f"{self._root}/{path}")
        if sha256 is not None:
            actual = hashlib.sha256(data).hexdigest()
            if actual != sha256:
                raise ChecksumMismatch(ref=path, file=path, expected=sha256, actual=actual)
        return data

    def delete(self, path: str) -> None:
        """Remove the job's folder of blobs; one that is gone already is no error."""
        folder = f"{self._root}/{path.split('/', maxsplit=1)[0]}"
        with translated(f"deleting the result {path}"), suppress(FileNotFoundError):
            self._fs.rm(folder, recursive=True)
