"""Collection of what nothing needs any more: files of deleted versions, and what jobs that are gone left behind.

`python -m models_store.collection` prints one JSON object; `ondol models gc` runs it. Publishes that run meanwhile are
safe: a blob or manifest that was written or wanted within the grace time is never touched.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from fsspec.core import url_to_fs

from models_store.failures import translated
from models_store.store import REUSE_WITHIN, ModelStore
from ondol.contract.errors import InvalidPayload, OndolError
from ondol.control import administration
from ondol.settings import CommonSettings, load_settings

_JOB_FOLDERS = ("checkpoints", "results")


@dataclass(frozen=True, slots=True)
class Collected:
    """What was deleted, or would be (`is_dry`): versions' manifests, blobs, and folders of jobs that are gone."""

    manifests: tuple[str, ...]
    num_blobs: int
    blob_bytes: int
    job_folders: tuple[str, ...]
    is_dry: bool


class Collector:
    """One collection over one store. StoreUnavailable (a retry can help) where the filesystem fails."""

    def __init__(self, store_url: str, *, grace: timedelta, is_dry: bool) -> None:
        self._store = ModelStore(store_url)
        self._grace = grace
        self._is_dry = is_dry
        self._fs, root = url_to_fs(store_url)
        self._root = root.rstrip("/")
        if grace < REUSE_WITHIN and not self._store.is_local:
            hours = REUSE_WITHIN.total_seconds() / 3600
            raise InvalidPayload(f"on an object store a publish may reuse blobs for {hours:g} h; give a longer time")

    def collect(
        self,
        in_use: Collection[str],
        existing_jobs: Callable[[Collection[str]], Collection[str]],
        *,
        known: Collection[str],
    ) -> Collected:
        """Delete manifests not `in_use`, blobs that none of the others names, and folders of jobs that do not exist.

        InvalidPayload if none of the store's versions is `known`, now or from before: the database is another store's.
        """
        listed = set(self._store.list_manifests())
        if listed and listed.isdisjoint(known):
            raise InvalidPayload(
                f"the database knows no version of the store {self._store.url}; nothing is deleted: "
                "do ONDOL_DATABASE_URL and ONDOL_STORE_URL belong together?"
            )
        unused = self._store.stale_manifests(listed - set(in_use), self._grace)
        if not self._is_dry:
            for digest in unused:
                self._store.delete_manifest(digest)
        blobs = self._store.delete_unreferenced_blobs(self._grace, without=frozenset(unused), is_dry=self._is_dry)
        return Collected(
            manifests=tuple(sorted(unused)),
            num_blobs=len(blobs),
            blob_bytes=sum(blob.size_bytes for blob in blobs),
            job_folders=self._collect_job_folders(existing_jobs),
            is_dry=self._is_dry,
        )

    def _collect_job_folders(self, existing_jobs: Callable[[Collection[str]], Collection[str]]) -> tuple[str, ...]:
        """A job's row is there before its folders, and goes before them."""
        gone: list[str] = []
        for kind in _JOB_FOLDERS:
            with translated(f"listing {kind}"):
                paths = self._fs.ls(f"{self._root}/{kind}", detail=False) if self._exists(kind) else []
            names = {path.rstrip("/").rpartition("/")[2]: path for path in paths}
            for name in sorted(names.keys() - set(existing_jobs(names.keys()))):
                gone.append(f"{kind}/{name}")
                if not self._is_dry:
                    with translated(f"deleting {kind}/{name}"):
                        self._fs.rm(names[name], recursive=True)
        return tuple(gone)

    def _exists(self, kind: str) -> bool:
        self._fs.invalidate_cache()
        exists: bool = self._fs.exists(f"{self._root}/{kind}")
        return exists


def collect(*, grace: timedelta, is_dry: bool) -> Collected:
    """Collect in the store and the database that the settings name."""
    settings = load_settings(CommonSettings)
    url = settings.resolved_database_url()
    collector = Collector(settings.resolved_store_url(), grace=grace, is_dry=is_dry)
    in_use = administration.manifests_in_use(url, grace_s=grace.total_seconds())
    known = administration.known_manifests(url)
    return collector.collect(in_use, lambda ids: administration.jobs_that_exist(url, ids), known=known)


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m models_store.collection")
    parser.add_argument("--grace-h", type=float, required=True)
    parser.add_argument("--yes", action="store_true")
    given = parser.parse_args()
    try:
        found = collect(grace=timedelta(hours=given.grace_h), is_dry=not given.yes)
    except OndolError as error:
        _print({"error": {"code": error.code, "message": error.message}})
        return 1
    _print(asdict(found))
    return 0


def _print(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")


if __name__ == "__main__":
    sys.exit(_main())
