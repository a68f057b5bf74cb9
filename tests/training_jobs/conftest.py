"""A running Ondol with one trainer node, on one database after the other, and files to train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster, running_cluster
from tests.servers import RedisServer
from tests.training_jobs.client import TrainingClient

FAST = {"ONDOL_RUNG_UNCLAIMED_S": "2", "ONDOL_LEASE_S": "3", "ONDOL_RENEW_S": "0.5", "ONDOL_LOG_FORMAT": "json"}


@pytest.fixture
def cluster(tmp_path: Path, tiny_version: Path, sqlite_url: str, empty_redis: RedisServer) -> Iterator[Cluster]:
    """Api, reconciler, one worker and one trainer node over SQLite, with the tiny base published."""
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=FAST) as started:
        started.start_api()
        started.start_reconciler()
        started.publish(tiny_version, "tiny")
        started.start_worker()
        started.start_trainer()
        yield started


@pytest.fixture
def client(cluster: Cluster) -> Iterator[TrainingClient]:
    """What an application does over HTTP."""
    with TrainingClient(cluster.url) as opened:
        yield opened
