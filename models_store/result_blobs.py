"""Results too large for SQL: one file a job and attempt, written before the row that names it."""

from __future__ import annotations

import hashlib

import fsspec
from fsspec.core import url_to_fs

from ondol.contract.errors import ChecksumMismatch, StoreUnavailable


class ResultBlobs:
    """Blobs below `<store>/results`. Library errors leave as StoreUnavailable."""

    def __init__(self, store_url: str) -> None:
        self._fs: fsspec.AbstractFileSystem
        self._fs, root = url_to_fs(store_url)
        self._root = f"{root.rstrip('/')}/results"

    def write(self, job_id: str, attempt: int, data: bytes) -> str:
        """Store the bytes; the path to keep in SQL."""
        path = f"{job_id}/{attempt}.bin"
        try:
            self._fs.makedirs(f"{self._root}/{job_id}", exist_ok=True)
            self._fs.pipe_file(f"{self._root}/{path}", data)
        except OSError as exc:
            raise StoreUnavailable(f"the result could not be written to the store: {exc}") from exc
        return path

    def read(self, path: str, *, sha256: str | None = None) -> bytes:
        """The bytes at a stored path; ChecksumMismatch when they are not what was written."""
        try:
            data: bytes = self._fs.cat_file(f"{self._root}/{path}")
        except OSError as exc:
            raise StoreUnavailable(f"the result could not be read from the store: {exc}") from exc
        if sha256 is not None:
            actual = hashlib.sha256(data).hexdigest()
            if actual != sha256:
                raise ChecksumMismatch(ref=path, file=path, expected=sha256, actual=actual)
        return data

    def delete(self, path: str) -> None:
        """Remove the job's folder of blobs; one that is gone already is no error."""
        folder = f"{self._root}/{path.split('/', maxsplit=1)[0]}"
        try:
            if self._fs.exists(folder):
                self._fs.rm(folder, recursive=True)
        except OSError as exc:
            raise StoreUnavailable(f"the result could not be deleted from the store: {exc}") from exc
