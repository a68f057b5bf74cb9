"""A running Ondol with one trainer node, on one database after the other, and files to train on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster import Cluster, running_cluster
from tests.servers import RedisServer

FAST = {"ONDOL_RUNG_UNCLAIMED_S": "2", "ONDOL_LEASE_S": "3", "ONDOL_RENEW_S": "0.5", "ONDOL_LOG_FORMAT": "json"}


@pytest.fixture(scope="module")
def steady_cluster(
    tmp_path_factory: pytest.TempPathFactory, tiny_version: Path, redis_server: RedisServer
) -> Iterator[Cluster]:
    """Api, reconciler, one worker and one trainer node, for tests that end none of them."""
    redis_server.flush()
    folder = tmp_path_factory.mktemp("steady")
    with _running(folder, tiny_version, redis_server) as started:
        started.start_worker()
        yield started


@pytest.fixture
def mortal_cluster(tmp_path: Path, tiny_version: Path, empty_redis: RedisServer) -> Iterator[Cluster]:
    """Api, reconciler and one trainer node, to be ended and started again."""
    with _running(tmp_path, tiny_version, empty_redis) as started:
        yield started


@contextmanager
def _running(folder: Path, tiny_version: Path, redis: RedisServer) -> Iterator[Cluster]:
    """A cluster over SQLite with the tiny base published."""
    url = f"sqlite:///{folder / 'ondol.db'}"
    with running_cluster(folder, database_url=url, redis_url=redis.url, settings=FAST) as started:
        started.start_api()
        started.start_reconciler()
        started.publish(tiny_version, "tiny")
        started.start_trainer()
        yield started
