"""Deleting what SQL has let go of: files and folders by their paths below the store's root."""

from __future__ import annotations

import re
from contextlib import suppress

import fsspec
from fsspec.core import url_to_fs

from models_store.failures import translated
from ondol.contract.errors import ModelStoreError

_PATH = re.compile(r"(checkpoints|files|inputs|results)(/[A-Za-z0-9][A-Za-z0-9._-]*)+")


class StoreGarbage:
    """Paths of jobs and files, never of models. Every method blocks; StoreUnavailable when the filesystem fails."""

    def __init__(self, store_url: str) -> None:
        self._fs: fsspec.AbstractFileSystem
        self._fs, root = url_to_fs(store_url)
        self._root = root.rstrip("/")

    def delete(self, path: str) -> None:
        """Remove the file or folder, and a job's folder that it leaves empty; what is gone already is no error.

        ModelStoreError for a path that is not a job's or file's own.
        """
        if _PATH.fullmatch(path) is None:
            raise ModelStoreError(f"{path[:200]!r} is no path of a job or file in the store; nothing is deleted")
        with translated(f"deleting {path}"):
            self._fs.invalidate_cache()
            with suppress(FileNotFoundError):
                self._fs.rm(f"{self._root}/{path}", recursive=True)
        parent = path.rpartition("/")[0]
        if "/" in parent:
            with suppress(OSError):  # not empty: other attempts of the job are there, or a writer has just begun
                self._fs.rmdir(f"{self._root}/{parent}")
