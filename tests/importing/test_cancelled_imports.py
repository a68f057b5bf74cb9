"""A cancelled import ends with its child: it holds neither memory nor a place in the window, and publishes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import sqlalchemy as sa

from ondol.sql.tables import messages, versions
from tests.cluster import Cluster, running_cluster
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

LIMIT_S = 30
AT_ONCE_S = 2.0


@pytest.fixture
def cluster(tmp_path: Path, sqlite_url: str, empty_redis: RedisServer) -> Iterator[Cluster]:
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url) as started:
        started.start_api()
        started.start_reconciler()
        started.start_worker(0, faults=[])
        yield started


def importing_child(cluster: Cluster) -> psutil.Process:
    """The child of the import that the worker runs; waits until there is one, and stops it where it is."""

    def find() -> psutil.Process | None:
        for child in psutil.Process(cluster.processes["worker0"].pid).children():
            with suppress(psutil.Error):
                if "workers.importing" in child.cmdline():
                    return child
        return None

    found = wait_until(find, within_s=LIMIT_S, what="the child of an import")
    assert found is not None
    found.suspend()
    return found


def count(cluster: Cluster, table: sa.Table) -> int:
    query = sa.select(sa.func.count()).select_from(table)
    return cluster.database.read(lambda uow: int(uow.conn.execute(query).scalar_one()))


def ask_for_import(cluster: Cluster, folder: Path) -> str:
    """The id of a new import job."""
    body: dict[str, Any] = {"kind": "import", "input": {"path": str(folder)}, "options": {"name": "late"}}
    answer = httpx.post(f"{cluster.url}/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_a_cancelled_import_ends_at_once(cluster: Cluster, plain: Path) -> None:
    job_id = ask_for_import(cluster, plain)
    child = importing_child(cluster)
    assert count(cluster, messages) == 1
    assert httpx.post(f"{cluster.url}/v1/jobs/{job_id}/cancel").status_code == 200
    wait_until(lambda: not child.is_running(), within_s=AT_ONCE_S, what="the child to be gone")
    wait_until(lambda: count(cluster, messages) == 0, within_s=AT_ONCE_S, what="its place in the window to be free")
    assert httpx.get(f"{cluster.url}/v1/jobs/{job_id}").json()["status"] == "cancelled"
    assert count(cluster, versions) == 0
    assert [path for path in (cluster.folder / "data" / "store").rglob("*") if path.is_file()] == []
    assert list((cluster.folder / "data" / "staging").glob("*/*")) == []


def test_an_import_goes_back_to_the_queue_when_its_worker_stops(cluster: Cluster, plain: Path) -> None:
    job_id = ask_for_import(cluster, plain)
    child = importing_child(cluster)
    assert cluster.terminate("worker0") == 0
    assert not child.is_running()
    assert httpx.get(f"{cluster.url}/v1/jobs/{job_id}").json()["status"] == "queued"
    assert count(cluster, versions) == 0
