"""A publish that breaks off leaves files that the database knows of: they are collected, and stop no collection."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from models_store.collection import Collected, collect
from models_store.store import ModelStore
from ondol.contract.errors import InvalidPayload
from ondol.sql.database import Database
from ondol.sql.tables import publish_intents
from tests.job_fixtures import open_database, project_of
from tests.model_store.folders import make_version

pytestmark = pytest.mark.integration

GRACE = timedelta(hours=48)
HOUR_S = 3600.0


@pytest.fixture
def database(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The one that the settings name, with a store."""
    monkeypatch.setenv("ONDOL_DATABASE_URL", database_url)
    monkeypatch.setenv("ONDOL_STORE_URL", f"file://{tmp_path / 'store'}")
    database = open_database(database_url)
    yield database
    database.close()


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(f"file://{tmp_path / 'store'}")


def begin(database: Database, store: ModelStore, folder: Path, *, seed: int = 0) -> str:
    """A publish as workers do it, up to the row of the version; the manifest's digest."""
    make_version(folder / f"version{seed}", seed=seed)
    return store.publish_folder(
        folder / f"version{seed}", "m", intend=lambda digest: database.write(lambda uow: uow.models.intend(digest))
    ).digest


def record(database: Database, digest: str) -> None:
    project_id = project_of(database)
    database.write(
        lambda uow: uow.models.publish(
            project_id=project_id,
            name="m",
            task="embedding",
            manifest_digest=digest,
            size_bytes=1,
            spec={},
            job_id=None,
            attempt=None,
            lineage={},
        )
    )


def age(database: Database, folder: Path, *, hours: float) -> None:
    """Let everything so far have been written so long ago."""
    then = time.time() - hours * HOUR_S
    for path in (folder / "store").rglob("*"):
        os.utime(path, (then, then))
    age_intents(database, hours=hours)


def age_intents(database: Database, *, hours: float) -> None:
    """Let what was published so far have been begun so long ago."""
    statement = sa.update(publish_intents).values(created_at=publish_intents.c.created_at - hours * HOUR_S)
    database.write(lambda uow: uow.conn.execute(statement))


def intents(database: Database) -> set[str]:
    return set(database.read(lambda uow: uow.conn.execute(sa.select(publish_intents.c.manifest_digest)).scalars()))


def collect_all(*, is_dry: bool = False) -> Collected:
    """As an api does it every day."""
    return collect(grace=GRACE, is_dry=is_dry, with_unknown=False)


def test_a_publish_that_broke_off_is_collected_and_forgotten(
    database: Database, store: ModelStore, tmp_path: Path
) -> None:
    kept, broken = (begin(database, store, tmp_path, seed=seed) for seed in (1, 2))
    record(database, kept)
    assert intents(database) == {broken}, "a version that is recorded is no intent"
    age(database, tmp_path, hours=49)
    assert collect_all(is_dry=True).manifests == (broken,)
    assert collect_all().manifests == (broken,)
    assert (store.list_manifests(), intents(database)) == ([kept], set())


def test_a_publish_that_was_not_ended_yet_keeps_its_files_and_stays_known(
    database: Database, store: ModelStore, tmp_path: Path
) -> None:
    old = begin(database, store, tmp_path, seed=1)
    age(database, tmp_path, hours=49)
    young = begin(database, store, tmp_path, seed=2)
    assert collect_all().manifests == (old,)
    assert (store.list_manifests(), intents(database)) == ([young], {young})


def test_a_publish_that_took_days_stays_known_as_long_as_its_manifest_is_there(
    database: Database, store: ModelStore, tmp_path: Path
) -> None:
    digest = begin(database, store, tmp_path)
    age_intents(database, hours=49)
    assert collect_all().manifests == ()
    assert intents(database) == {digest}


def test_a_publish_that_wrote_no_manifest_is_forgotten_in_time(database: Database, store: ModelStore) -> None:
    database.write(lambda uow: uow.models.intend("0" * 64))
    collect_all()
    assert intents(database) == {"0" * 64}
    statement = sa.update(publish_intents).values(created_at=0.0)
    database.write(lambda uow: uow.conn.execute(statement))
    collect_all()
    assert intents(database) == set() and store.list_manifests() == []


def test_a_manifest_that_nobody_intended_still_stops_the_collection(
    database: Database, store: ModelStore, tmp_path: Path
) -> None:
    record(database, begin(database, store, tmp_path, seed=1))
    store.publish_folder(make_version(tmp_path / "strange", seed=2), "m")
    age(database, tmp_path, hours=49)
    with pytest.raises(InvalidPayload, match="1 of the store's 2 versions; nothing is deleted"):
        collect_all()
    assert len(store.list_manifests()) == 2


def test_what_is_published_again_is_intended_again(database: Database, store: ModelStore, tmp_path: Path) -> None:
    broken = begin(database, store, tmp_path, seed=1)
    age(database, tmp_path, hours=49)
    store.publish_folder(
        tmp_path / "version1", "m", intend=lambda digest: database.write(lambda uow: uow.models.intend(digest))
    )
    assert collect_all().manifests == ()
    store.delete_manifest(broken)  # as a collection would that had begun before
    collect_all()
    assert intents(database) == {broken}
