"""A running Ondol for bulk jobs by SDK and command line: tiny models, one worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ondol import Ondol
from tests.cluster import Cluster, running_cluster
from tests.publishing import import_here
from tests.servers import RedisServer
from tests.tiny_models import make_tiny_head

EMBEDDER, CLASSIFIER = "tiny", "moods"


@pytest.fixture(scope="package")
def redis_of_bulk_clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that no other test empties."""
    server = RedisServer(tmp_path_factory.mktemp("bulk-client-redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="package")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, tiny_version: Path, redis_of_bulk_clients: RedisServer
) -> Iterator[Cluster]:
    """Api, reconciler and one worker over SQLite."""
    folder = tmp_path_factory.mktemp("bulk-client")
    import_here(make_tiny_head(folder / "source"), folder / "moods")
    url = f"sqlite:///{folder / 'ondol.db'}"
    with running_cluster(folder, database_url=url, redis_url=redis_of_bulk_clients.url) as started:
        started.start_api()
        started.start_reconciler()
        started.publish(tiny_version, EMBEDDER)
        started.publish(folder / "moods", CLASSIFIER)
        started.start_worker()
        yield started


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Ondol]:
    """A client of it."""
    with Ondol(cluster.url) as opened:
        yield opened
