"""What nothing needs any more is deleted; what is young, in use or unknown to a wrong database is not."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from models_store.collection import Collector
from models_store.store import ModelStore
from ondol.contract.errors import InvalidPayload
from tests.model_store.folders import make_version

pytestmark = pytest.mark.unit

DAY = timedelta(days=1)


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
    folders = [tmp_path / "store" / kind / job for kind in ("checkpoints", "results") for job in ("job_1", "job_2")]
    for folder in folders:
        folder.mkdir(parents=True)
    age(tmp_path / "store")
    for is_dry in (True, False):
        found = Collector(store.url, grace=DAY, is_dry=is_dry).collect([kept], lambda _: {"job_1"}, known=[kept])
        assert (found.manifests, found.num_blobs, found.is_dry) == ((deleted,), 1, is_dry)
        assert found.job_folders == ("checkpoints/job_2", "results/job_2")
        assert (len(store.list_manifests()), len(store.list_blobs())) == ((2, 4) if is_dry else (1, 3))
    assert [folder.exists() for folder in folders] == [True, False, True, False]
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


def test_on_an_object_store_a_short_time_is_refused() -> None:
    with pytest.raises(InvalidPayload, match="object store"):
        Collector("memory://gc", grace=timedelta(hours=2), is_dry=False)
