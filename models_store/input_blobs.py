"""Payloads of shards that were cut from a file: one blob an attempt, all payloads of the job end to end.

A payload is a byte range with a digest of its own, so that a worker reads what it runs and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import PurePosixPath

import fsspec
from fsspec.core import url_to_fs

from models_store.failures import translated
from models_store.file_blobs import FileWriter
from ondol.contract.errors import ChecksumMismatch
from ondol.sql.records import InputBlob

_SUFFIX = ".bin"


class InputBlobs:
    """Blobs `<store>/inputs/<job>/<attempt>.bin`; may be shared by threads, and every method blocks.

    Every method raises StoreUnavailable (a retry can help) where the filesystem fails, StorageFull where it is full.
    """

    def __init__(self, store_url: str) -> None:
        self._fs: fsspec.AbstractFileSystem
        self._fs, root = url_to_fs(store_url)
        self._root = f"{root.rstrip('/')}/inputs"

    def write(self, job_id: str, attempt: int, chunks: Iterable[bytes]) -> str:
        """Store the bytes, which appear whole or not at all; the path to keep in SQL.

        Whatever `chunks` raises passes through, and leaves nothing behind.
        """
        path = f"{job_id}/{attempt}{_SUFFIX}"
        writer = FileWriter(self._fs, f"{self._root}/{path}")
        try:
            for chunk in chunks:
                writer.write(chunk)
            writer.commit()
        finally:
            writer.abort()
        return path

    def read(self, blob: InputBlob) -> bytes:
        """One payload; ChecksumMismatch when it is not what was written, ModelStoreError when its file is gone."""
        with translated(f"reading inputs {blob.path}"):
            data: bytes = self._fs.cat_file(f"{self._root}/{blob.path}", start=blob.offset, end=blob.offset + blob.size)
        actual = hashlib.sha256(data).hexdigest()
        if actual != blob.sha256:
            raise ChecksumMismatch(ref=blob.path, file=f"bytes from {blob.offset}", expected=blob.sha256, actual=actual)
        return data

    def delete(self, path: str) -> None:
        """Remove all blobs of the job whose blob is at `path`; one that is gone already is no error."""
        folder = f"{self._root}/{path.split('/', maxsplit=1)[0]}"
        with translated(f"deleting inputs {path}"), suppress(FileNotFoundError):
            self._fs.rm(folder, recursive=True)

    def delete_one(self, path: str) -> None:
        """Remove the blob of one attempt, and leave the others of its job."""
        with translated(f"deleting inputs {path}"), suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{path}")

    def delete_older(self, job_id: str, attempt: int) -> None:
        """Remove what earlier attempts of the job left, whole or half written: nobody can record it any more."""
        folder = f"{self._root}/{job_id}"
        with translated(f"deleting old inputs of {job_id}"):
            self._fs.invalidate_cache()
            try:
                found = [str(path) for path in self._fs.ls(folder, detail=False)]
            except FileNotFoundError:
                return
            for path in found:
                number = PurePosixPath(path).name.partition(_SUFFIX)[0]
                if number.isdigit() and int(number) < attempt:
                    with suppress(FileNotFoundError):
                        self._fs.rm_file(path)
