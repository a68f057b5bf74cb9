"""Files of a version stay on the host while a work names them, however many other versions take their turn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models_store.cache import LocalCache
from models_store.store import ModelStore
from ondol.contract.model_spec import SPEC_FILE
from ondol.contract.states import Priority
from ondol.sql.database import Database
from ondol.sql.records import VersionRecord
from tests.servers import ON_SQLITE
from tests.serving.versions import tiny_versions
from workers.device_keeper import DeviceKeeper, DeviceProgram
from workers.model_library import MAX_VERSIONS, ModelLibrary
from workers.rows import BatchKey, DeviceModel, Work

pytestmark = [pytest.mark.integration, ON_SQLITE]

NUM_VERSIONS = MAX_VERSIONS + 3


def publish(database: Database, store: ModelStore, folder: Path) -> VersionRecord:
    manifest = store.publish_folder(folder, "tiny")
    project_id = database.write(lambda uow: uow.keys.ensure_project())
    return database.write(
        lambda uow: uow.models.publish(
            project_id=project_id,
            name="tiny",
            task="embedding",
            manifest_digest=manifest.digest,
            size_bytes=manifest.size_bytes,
            spec=json.loads((folder / SPEC_FILE).read_bytes()),
            job_id=None,
            attempt=None,
            lineage={},
        )
    ).version


def library_of(database: Database, store: ModelStore, cache: LocalCache) -> ModelLibrary:
    """A library whose device process is never started: only files are asked for."""
    keeper = DeviceKeeper(DeviceProgram(("false",)), forward_limit_s=1, on_up=lambda _: None, on_down=lambda: None)
    return ModelLibrary(
        database=database,
        store=store,
        cache=cache,
        keeper=keeper,
        default_dtype="float32",
        on_loaded=lambda *_: None,
    )


def test_files_stay_until_the_last_work_that_names_them_is_over(
    tmp_path: Path, tiny_version: Path, database: Database
) -> None:
    store = ModelStore(f"file://{tmp_path / 'store'}")
    folders = tiny_versions(tiny_version, tmp_path / "versions", num=NUM_VERSIONS)
    first, *others = [publish(database, store, folder) for folder in folders]
    room = sum(version.size_bytes for version in (first, *others)[: MAX_VERSIONS + 1])
    library = library_of(database, store, LocalCache(tmp_path / "cache", room))

    served = library.version(first.id)
    path = served.path
    model = DeviceModel(f"{first.manifest_digest}:float32", first.ref, str(path), "float32", served.pin)
    work = Work(id="job_1", key=BatchKey(model, "embedding", None, -1), priority=Priority.NORMAL)
    del served, model
    for version in others[:-1]:
        library.version(version.id)  # more than the library remembers, and than the cache has room for
    assert (path / SPEC_FILE).exists(), "a row that waits can still be sent to the device"

    assert work.key.model.path == str(path)
    del work
    library.version(others[-1].id)
    assert not path.exists(), "nobody names them: they make room"
    assert library.version(first.id).path == path
    assert (path / SPEC_FILE).exists()
