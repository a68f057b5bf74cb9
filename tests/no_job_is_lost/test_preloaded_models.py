"""Models named by the setting are warm before anybody asks, and again after the device process has died."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.cluster import Cluster, running_cluster
from tests.servers import RedisServer
from tests.waiting import wait_until
from workers.preload import RETRY_S

pytestmark = pytest.mark.integration


def test_a_preloaded_model_is_warm_again_when_its_device_process_was_killed(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    settings = {"ONDOL_MODELS": "tiny,unknown"}
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=settings) as cluster:
        cluster.publish(tiny_version, "tiny")
        worker = cluster.start_worker(0, faults=[])
        wait_until(lambda: _warm(cluster) == ["tiny:1"], within_s=20, what="the model to be warm")
        psutil.Process(cluster.device_pid(worker)).kill()
        wait_until(
            lambda: cluster.log_of(worker).count("preload.pinned") == 2, within_s=20, what="it to be loaded anew"
        )
        wait_until(lambda: _warm(cluster) == ["tiny:1"], within_s=20, what="the session to say so")
        assert "unknown" in cluster.log_of(worker), "a model that is not there is named in the log"


def test_a_preload_that_fails_while_the_store_is_away_is_made_up_for(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    settings = {"ONDOL_MODELS": "tiny"}
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=settings) as cluster:
        cluster.publish(tiny_version, "tiny")
        store = tmp_path / "data" / "store"
        store.rename(tmp_path / "away")
        store.write_bytes(b"no folder: whatever stands below it cannot be reached")
        worker = cluster.start_worker(0, faults=[])
        wait_until(lambda: "preload.failed" in cluster.log_of(worker), within_s=20, what="the first try")
        store.unlink()
        (tmp_path / "away").rename(store)
        wait_until(lambda: _warm(cluster) == ["tiny:1"], within_s=20 + RETRY_S, what="the model to be warm uncalled")


def _warm(cluster: Cluster) -> list[str]:
    sessions = cluster.database.read(lambda uow: uow.sessions.open_sessions())
    return list(sessions[0].warm) if sessions else []
