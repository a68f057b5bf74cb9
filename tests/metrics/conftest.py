"""One running Ondol for all tests of this folder: api, reconciler, worker and trainer node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import running_cluster
from tests.metrics.watched import Watched
from tests.servers import RedisServer

FAST = {
    "ONDOL_LEASE_S": "5",
    "ONDOL_RENEW_S": "0.5",
    "ONDOL_TICK_S": "0.5",
    "ONDOL_MESSAGE_JOBS": "2",
    "ONDOL_LOG_FORMAT": "json",
}
"""Of four jobs two workers get a message each."""


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory, tiny_version: Path, redis_server: RedisServer
) -> Iterator[Watched]:
    """The processes; a test that ends one starts it again."""
    redis_server.flush()
    folder = tmp_path_factory.mktemp("watched")
    url = f"sqlite:///{folder / 'ondol.db'}"
    with running_cluster(folder, database_url=url, redis_url=redis_server.url, settings=FAST) as cluster:
        started = Watched(cluster)
        cluster.start_api()
        cluster.publish(tiny_version, "tiny")
        for name in ("reconciler", "worker0", "trainer0"):
            started.start(name)
        yield started
