"""One running Ondol for all tests of this folder: api, reconciler, worker and trainer node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import running_cluster
from tests.metrics.watched import Watched
from tests.servers import RedisServer
from tests.waiting import wait_until

LIMIT_S = 60

FAST = {
    "ONDOL_LEASE_S": "5",
    "ONDOL_RENEW_S": "0.5",
    "ONDOL_TICK_S": "0.5",
    "ONDOL_MESSAGE_JOBS": "2",
    "ONDOL_LOG_FORMAT": "json",
}
"""Four jobs are two messages."""


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory, tiny_version: Path, redis_server: RedisServer
) -> Iterator[Watched]:
    """The processes, worker0 warm: where a second worker gets what, does not hang on the order of the tests."""
    redis_server.flush()
    folder = tmp_path_factory.mktemp("watched")
    url = f"sqlite:///{folder / 'ondol.db'}"
    with running_cluster(folder, database_url=url, redis_url=redis_server.url, settings=FAST) as cluster:
        started = Watched(cluster)
        cluster.start_api()
        cluster.publish(tiny_version, "tiny")
        for name in ("reconciler", "worker0", "trainer0"):
            started.start(name)
        [first] = started.submit()
        wait_until(lambda: started.state(first) == "succeeded", within_s=LIMIT_S, what="the first job")
        wait_until(lambda: started.is_warm("cpu0@", "tiny"), within_s=LIMIT_S, what="worker0 to say that it is warm")
        yield started
