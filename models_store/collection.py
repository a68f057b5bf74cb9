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

_JOB_FOLDERS = ("checkpoints", "inputs", "results")
_LONGEST_PUBLISH = timedelta(hours=1)
_MOST_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Collected:
    """What was deleted, or would be (`is_dry`): versions' manifests, blobs, and folders of jobs that are gone."""

    manifests: tuple[str, ...]
    num_blobs: int
    blob_bytes: int
    job_folders: tuple[str, ...]
    is_dry: bool


class Collector:
    """One collection over one store. StoreUnavailable (a retry can help) where the filesystem fails.

    `with_unknown`: what the database never heard of goes, too.
    """

    def __init__(self, store_url: str, *, grace: timedelta, is_dry: bool, with_unknown: bool = False) -> None:
        self._store = ModelStore(store_url)
        self._grace = grace
        self._is_dry = is_dry
        self._with_unknown = with_unknown
        self._fs, root = url_to_fs(store_url)
        self._root = root.rstrip("/")
        least = REUSE_WITHIN + _LONGEST_PUBLISH
        if grace < least and not self._store.is_local:
            raise InvalidPayload(
                f"on an object store a publish may reuse blobs of {_hours(REUSE_WITHIN)}; give {_hours(least)} or more"
            )

    def collect(
        self,
        in_use: Collection[str],
        existing_jobs: Callable[[Collection[str]], Collection[str]],
        *,
        known: Collection[str],
    ) -> Collected:
        """Delete manifests not `in_use`, blobs that none of the others names, and folders of jobs that do not exist.

        `known` are all that the database ever had, or that somebody began to publish. InvalidPayload, and nothing is
        deleted, if the store's clock is another, if none of its versions is known, or if some old ones are not, unless
        those are to go, too.
        """
        listed = set(self._store.list_manifests())
        self._refuse_strangers(listed, set(known))
        if not self._is_dry:
            self._refuse_another_clock()
        unused = []
        for digest in sorted(listed - set(in_use)):
            # One by one: what is published again meanwhile must be seen to be young.
            if self._store.stale_manifests([digest], self._grace):
                unused.append(digest)
                if not self._is_dry:
                    self._store.delete_manifest(digest)
        blobs = self._store.delete_unreferenced_blobs(self._grace, without=frozenset(unused), is_dry=self._is_dry)
        return Collected(
            manifests=tuple(unused),
            num_blobs=len(blobs),
            blob_bytes=sum(blob.size_bytes for blob in blobs),
            job_folders=self._collect_job_folders(existing_jobs),
            is_dry=self._is_dry,
        )

    def stored(self) -> list[str]:
        """Digests of the manifests that are in the store now."""
        return self._store.list_manifests()

    def _refuse_strangers(self, listed: set[str], known: set[str]) -> None:
        if listed and listed.isdisjoint(known):
            raise InvalidPayload(
                f"the database knows no version of the store {self._store.url}; nothing is deleted: "
                "do ONDOL_DATABASE_URL and ONDOL_STORE_URL belong together?"
            )
        strange = [] if self._with_unknown else self._store.stale_manifests(listed - known, self._grace)
        if strange:
            raise InvalidPayload(
                f"the database never knew {len(strange)} of the store's {len(listed)} versions; nothing is deleted: "
                "they are another database's, or later than the backup that this one was restored from; "
                "only if you know that they are neither, add --unknown"
            )

    def _refuse_another_clock(self) -> None:
        skew = self._store.clock_skew()
        if abs(skew) > _MOST_SKEW:
            raise InvalidPayload(
                f"this host's clock and the store's are {_hours(abs(skew))} apart, so that no file's age is known; "
                "nothing is deleted"
            )

    def _collect_job_folders(self, existing_jobs: Callable[[Collection[str]], Collection[str]]) -> tuple[str, ...]:
        """A job's row is there before its folders, and goes before them."""
        gone: list[str] = []
        for kind in _JOB_FOLDERS:
            with translated(f"listing {kind}"):
                paths = self._fs.ls(f"{self._root}/{kind}", detail=False) if self._exists(kind) else []
            names = {path.rstrip("/").rpartition("/")[2]: path for path in paths}
            for name in sorted(names.keys() - set(existing_jobs(names.keys()))):
                if not self._store.is_stale_folder(f"{kind}/{name}", self._grace):
                    continue
                gone.append(f"{kind}/{name}")
                if not self._is_dry:
                    with translated(f"deleting {kind}/{name}"):
                        self._fs.rm(names[name], recursive=True)
        return tuple(gone)

    def _exists(self, kind: str) -> bool:
        self._fs.invalidate_cache()
        exists: bool = self._fs.exists(f"{self._root}/{kind}")
        return exists


def collect(*, grace: timedelta, is_dry: bool, with_unknown: bool) -> Collected:
    """Collect in the store and the database that the settings name."""
    settings = load_settings(CommonSettings)
    url = settings.resolved_database_url()
    collector = Collector(settings.resolved_store_url(), grace=grace, is_dry=is_dry, with_unknown=with_unknown)
    in_use = administration.manifests_in_use(url, grace_s=grace.total_seconds())
    known = administration.known_manifests(url)
    found = collector.collect(in_use, lambda ids: administration.jobs_that_exist(url, ids), known=known)
    if not is_dry:
        forgotten_after = max(grace, REUSE_WITHIN + _LONGEST_PUBLISH)
        administration.forget_intents(url, collector.stored(), older_than_s=forgotten_after.total_seconds())
    return found


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m models_store.collection")
    parser.add_argument("--grace-h", type=float, required=True)
    parser.add_argument("--yes", action="store_true")
    parser.add_argument("--unknown", action="store_true")
    given = parser.parse_args()
    try:
        found = collect(grace=timedelta(hours=given.grace_h), is_dry=not given.yes, with_unknown=given.unknown)
    except OndolError as error:
        _print({"error": {"code": error.code, "message": error.message}})
        return 1
    _print(asdict(found))
    return 0


def _hours(span: timedelta) -> str:
    return f"{span.total_seconds() / 3600:.3g} h"


def _print(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")


if __name__ == "__main__":
    sys.exit(_main())
