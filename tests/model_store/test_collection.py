"""What nothing needs any more is deleted; what is young, in use or unknown to a wrong database is not."""

from __future__ import annotations

import os
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from models_store.collection import Collector
from models_store.store import ModelStore
from ondol.contract.errors import InvalidPayload
from tests.model_store.folders import make_version

pytestmark = pytest.mark.unit

DAY = timedelta(days=1)
KINDS = ("checkpoints", "inputs", "results")
"""What the store keeps of jobs, a folder a job."""


def age(store: Path) -> None:
    """Let all files of the store be two days old."""
    then = time.time() - 2 * DAY.total_seconds()
    for path in store.rglob("*"):
        os.utime(path, (then, then))


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(str(tmp_path / "store"))


def publish(store: ModelStore, tmp_path: Path, seed: int) -> str:
    return store.publish_folder(make_version(tmp_path / f"version{seed}", seed=seed), f"m:{seed}").digest


def test_the_files_of_deleted_versions_go_and_shared_ones_stay(store: ModelStore, tmp_path: Path) -> None:
    kept, deleted = (publish(store, tmp_path, seed) for seed in (1, 2))
    folders = [tmp_path / "store" / kind / job for kind in KINDS for job in ("job_1", "job_2")]
    for folder in folders:
        folder.mkdir(parents=True)
    age(tmp_path / "store")
    for is_dry in (True, False):
        collector = Collector(store.url, grace=DAY, is_dry=is_dry)
        found = collector.collect([kept], lambda _: {"job_1"}, known=[kept, deleted])
        assert (found.manifests, found.num_blobs, found.is_dry) == ((deleted,), 1, is_dry)
        assert found.job_folders == tuple(f"{kind}/job_2" for kind in KINDS)
        assert (len(store.list_manifests()), len(store.list_blobs())) == ((2, 4) if is_dry else (1, 3))
    assert [folder.exists() for folder in folders] == [True, False] * len(KINDS)
    assert publish(store, tmp_path / "again", 2) == deleted


def test_a_publish_that_is_not_recorded_yet_is_left_alone(store: ModelStore, tmp_path: Path) -> None:
    kept = publish(store, tmp_path, 1)
    age(tmp_path / "store")
    running = publish(store, tmp_path, 2)
    found = Collector(store.url, grace=DAY, is_dry=False).collect([kept], set, known=[kept])
    assert (found.manifests, found.num_blobs) == ((), 0)
    assert running in store.list_manifests()


def test_a_database_of_another_store_deletes_nothing(store: ModelStore, tmp_path: Path) -> None:
    publish(store, tmp_path, 1)
    age(tmp_path / "store")
    with pytest.raises(InvalidPayload, match="nothing is deleted"):
        Collector(store.url, grace=DAY, is_dry=False).collect([], set, known=["0" * 64])
    assert len(store.list_manifests()) == 1


def test_old_versions_that_the_database_never_knew_go_only_on_demand(store: ModelStore, tmp_path: Path) -> None:
    kept, strange = (publish(store, tmp_path, seed) for seed in (1, 2))
    age(tmp_path / "store")
    with pytest.raises(InvalidPayload, match="1 of the store's 2 versions; nothing is deleted"):
        Collector(store.url, grace=DAY, is_dry=False).collect([kept], set, known=[kept])
    assert len(store.list_manifests()) == 2
    found = Collector(store.url, grace=DAY, is_dry=False, with_unknown=True).collect([kept], set, known=[kept])
    assert (found.manifests, store.list_manifests()) == ((strange,), [kept])


def test_what_a_job_that_is_gone_wrote_just_now_is_left_alone(store: ModelStore, tmp_path: Path) -> None:
    kept = publish(store, tmp_path, 1)
    old, young = (tmp_path / "store" / "checkpoints" / job / "5-1" / "model" for job in ("job_1", "job_2"))
    for file in (old, young):
        file.parent.mkdir(parents=True)
        file.touch()
    age(tmp_path / "store")
    os.utime(young)
    found = Collector(store.url, grace=DAY, is_dry=False).collect([kept], lambda _: set(), known=[kept])
    assert found.job_folders == ("checkpoints/job_1",)
    assert (old.exists(), young.exists()) == (False, True)


def test_on_an_object_store_a_short_time_is_refused() -> None:
    with pytest.raises(InvalidPayload, match="object store"):
        Collector("memory://gc", grace=timedelta(hours=24), is_dry=False)


class Remembering(MemoryFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """A filesystem that, as drivers of object stores do, answers from its last listing, by a clock of its own."""

    protocol = "remembering"
    behind = timedelta(0)
    seen: ClassVar[dict[str, datetime]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.replace("remembering://", "memory://"))
        return stripped

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        found = super().find(path, *args, **kwargs)
        self.seen.update({name: self._dated(name) for name in found})
        return found

    def modified(self, path: str) -> datetime:
        return self.seen.get(path) or self._dated(path)

    def invalidate_cache(self, path: str | None = None) -> None:
        for name in [name for name in self.seen if path is None or name.startswith(path)]:
            del self.seen[name]

    def _dated(self, path: str) -> datetime:
        modified: datetime = super().modified(path)
        return modified - self.behind


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    fsspec.register_implementation("remembering", Remembering, clobber=True)
    monkeypatch.setattr(Remembering, "seen", {})
    return ModelStore(f"remembering://{uuid.uuid4().hex}")


def test_a_store_with_another_clock_is_left_alone(
    object_store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = publish(object_store, tmp_path, 1)
    monkeypatch.setattr(Remembering, "behind", 3 * DAY)
    with pytest.raises(InvalidPayload, match="72 h apart"):
        Collector(object_store.url, grace=2 * DAY, is_dry=False).collect([], set, known=[kept])
    assert object_store.list_manifests() == [kept]


def test_a_version_that_is_published_again_after_the_listing_is_not_taken(
    object_store: ModelStore, tmp_path: Path
) -> None:
    digest = object_store.publish_folder(make_version(tmp_path / "version"), "m:1").digest
    for file in Remembering.store.values():
        file.modified = datetime.now(UTC) - 3 * DAY
    assert object_store.list_manifests() == [digest]
    remembered = dict(Remembering.seen)
    assert object_store.stale_manifests([digest], 2 * DAY) == [digest]
    # Another process publishes; this one's driver remembers what it listed.
    object_store.publish_folder(tmp_path / "version", "m:2")
    Remembering.seen.update(remembered)
    assert object_store.stale_manifests([digest], 2 * DAY) == []
