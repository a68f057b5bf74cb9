"""A running Ondol for the examples: everything that they need, a tiny model under the name that they use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster, running_cluster
from tests.producers.venv import make_producer_venv
from tests.servers import RedisServer

MODEL = "all-minilm-l6-v2"
SETTINGS = {
    "ONDOL_RUNG_UNCLAIMED_S": "2",
    "ONDOL_WEBHOOK_NETWORKS": "127.0.0.0/8",
    "ONDOL_WEBHOOK_FIRST_PAUSE_S": "0.5",
}


@pytest.fixture(scope="package")
def redis_of_the_examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that no other test empties."""
    server = RedisServer(tmp_path_factory.mktemp("examples-redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="package")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, tiny_version: Path, redis_of_the_examples: RedisServer
) -> Iterator[Cluster]:
    """Api, reconciler, intake, one worker and one trainer node over SQLite."""
    folder = tmp_path_factory.mktemp("examples")
    url = f"sqlite:///{folder / 'ondol.db'}"
    with running_cluster(folder, database_url=url, redis_url=redis_of_the_examples.url, settings=SETTINGS) as started:
        started.start_api()
        started.start_reconciler()
        started.publish(tiny_version, MODEL)
        started.start_intake()
        started.start_worker()
        started.start_trainer()
        yield started


@pytest.fixture(scope="package")
def producer_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with Celery and without Ondol."""
    return make_producer_venv(tmp_path_factory.mktemp("examples-producer") / "venv")
