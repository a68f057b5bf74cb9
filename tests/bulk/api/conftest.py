"""One api process for this folder, whose jobs are cut into shards of 256 estimated tokens; each test has a project."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bulk.api.shard_runner import ShardRunner
from tests.http.api_process import ApiProcess, Member
from tests.http.shared_api import api_fixture
from tests.servers import RedisServer

bulk_api = api_fixture("session", message_tokens=256)
"""The api."""


@pytest.fixture
def member(bulk_api: ApiProcess) -> Iterator[Member]:
    """Somebody with a project that holds the model `tiny`."""
    made = bulk_api.member()
    yield made
    made.close()


@pytest.fixture
def runner(bulk_api: ApiProcess, redis_server: RedisServer) -> Iterator[ShardRunner]:
    """What runs shards, as many as the test asks for."""
    made = ShardRunner(bulk_api.database, redis_server.url, store_url=bulk_api.store_url)
    yield made
    made.close()
