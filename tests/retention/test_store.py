"""Files of the store go after the rows that named them; what a crash leaves between is found by the next sweep."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from api.database import AsyncDatabase
from api.housekeeping import Housekeeping
from api.services import Services
from models_store.file_blobs import FileBlobs
from models_store.garbage import StoreGarbage
from models_store.result_blobs import ResultBlobs
from ondol.contract.errors import ModelStoreError
from ondol.control.administration import manifests_in_use
from ondol.metrics.roles import ApiMetrics
from ondol.settings import ApiSettings
from ondol.sql.database import Database
from tests.job_fixtures import project_of
from tests.retention.aged import purge_all, sharded_job, uploaded
from tests.servers import ON_SQLITE

pytestmark = [pytest.mark.integration, ON_SQLITE]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def housekeeping(database: Database, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Housekeeping:
    """An api's, over a real database and store."""
    monkeypatch.setenv("ONDOL_STORE_URL", f"file://{store}")
    monkeypatch.setenv("ONDOL_DATABASE_URL", database.url)
    services = SimpleNamespace(
        settings=ApiSettings(),
        database=AsyncDatabase(database),
        metrics=ApiMetrics(),
        files=FileBlobs(f"file://{store}"),
    )
    return Housekeeping(cast(Services, services))


def sweep(housekeeping: Housekeeping) -> int:
    return asyncio.run(housekeeping.sweep())


def counted(housekeeping: Housekeeping, name: str, **labels: str) -> float:
    return float(housekeeping._services.metrics.registry.get_sample_value(name, labels) or 0)


def paths_in(store: Path) -> list[str]:
    return sorted(str(path.relative_to(store)) for path in store.rglob("*"))


def test_results_leave_the_store_after_their_rows(database: Database, store: Path, housekeeping: Housekeeping) -> None:
    job = sharded_job(database, 3, days_ago=31)
    blobs = ResultBlobs(f"file://{store}")
    for number in range(3):
        blobs.write(f"{job.id}.{number:06d}", 1, b"rows")
    later = blobs.write(f"{job.id}.000000", 2, b"a later attempt's")
    assert sweep(housekeeping) == 0 and len(paths_in(store)) == 8
    purge_all(database, results=30)
    assert len(paths_in(store)) == 8, "the rows go first"
    assert sweep(housekeeping) == 3
    assert paths_in(store) == ["results", f"results/{job.id}.000000", f"results/{later}"]
    assert database.read(lambda uow: uow.purging.garbage()) == []
    assert counted(housekeeping, "ondol_store_files_deleted_total") == 3


def test_what_was_deleted_before_a_crash_is_no_trouble_and_what_was_not_is_found(
    database: Database, store: Path, housekeeping: Housekeeping
) -> None:
    gone, left = uploaded(database, days_ago=8), uploaded(database, days_ago=8)
    (store / "files").mkdir(parents=True)
    (store / "files" / left).write_bytes(b"x")
    purge_all(database, files=7)
    assert sweep(housekeeping) == 2, f"{gone} was deleted by a sweep that died before it could say so"
    assert paths_in(store) == ["files"]


def test_a_file_that_cannot_be_deleted_now_is_tried_again(
    database: Database, store: Path, housekeeping: Housekeeping
) -> None:
    file_id = uploaded(database, days_ago=8)
    purge_all(database, files=7)
    store.mkdir()
    (store / "files").write_bytes(b"no folder: whatever stands below it cannot be reached")
    assert sweep(housekeeping) == 0
    (store / "files").unlink()
    (store / "files").mkdir()
    (store / "files" / file_id).write_bytes(b"x")
    assert sweep(housekeeping) == 1 and paths_in(store) == ["files"]


def test_a_deleted_file_is_garbage_until_its_blob_is_gone(
    database: Database, store: Path, housekeeping: Housekeeping
) -> None:
    file_id, project_id = uploaded(database, days_ago=0), project_of(database)
    database.write(lambda uow: uow.files.delete(file_id, project_id))
    (store / "files").mkdir(parents=True)
    (store / "files" / file_id).write_bytes(b"the api died before it came to this")
    assert sweep(housekeeping) == 1 and paths_in(store) == ["files"]


def test_only_files_of_jobs_and_uploads_are_ever_deleted(store: Path) -> None:
    garbage = StoreGarbage(f"file://{store}")
    for path in ("manifests/x", "blobs/ab", "results", "files/../manifests/x", "files//x", "", "/etc"):
        with pytest.raises(ModelStoreError, match="nothing is deleted"):
            garbage.delete(path)


def test_of_many_apis_one_collects_in_a_day(database: Database, store: Path, housekeeping: Housekeeping) -> None:
    assert manifests_in_use(database.url, grace_s=0) == set()
    store.mkdir()

    async def twice() -> None:
        await housekeeping.collect()
        await housekeeping.collect()

    asyncio.run(twice())
    assert counted(housekeeping, "ondol_store_collections_total", outcome="done") == 1
