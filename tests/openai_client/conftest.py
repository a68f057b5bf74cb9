"""A running Ondol with one worker and one trainer node, and OpenAI's own client, as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.cluster import Cluster, running_cluster
from tests.servers import RedisServer

BASE = "all-minilm-l6-v2"
"""The name of the default model, by which the documentation calls it; here a tiny one bears it."""


@pytest.fixture(scope="session")
def redis_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that no other test empties."""
    server = RedisServer(tmp_path_factory.mktemp("openai-redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, tiny_version: Path, redis_of_its_own: RedisServer
) -> Iterator[Cluster]:
    """Api, reconciler, one worker and one trainer node over SQLite, with a tiny base published."""
    folder = tmp_path_factory.mktemp("openai")
    url = f"sqlite:///{folder / 'ondol.db'}"
    with running_cluster(folder, database_url=url, redis_url=redis_of_its_own.url) as started:
        started.start_api()
        started.start_reconciler()
        started.publish(tiny_version, BASE)
        started.start_trainer()
        started.start_worker()
        yield started


@pytest.fixture
def client(cluster: Cluster) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="not-needed-here", max_retries=0) as opened:
        yield opened
