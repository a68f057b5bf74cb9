"""One api process for this folder, whose jobs are cut into shards of 256 estimated tokens; each test has a project."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bulk.api.shard_runner import ShardRunner
from tests.http.api_process import ApiProcess, Member
from tests.servers import RedisServer


@pytest.fixture(scope="session")
def bulk_api(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[ApiProcess]:
    """The api."""
    folder = tmp_path_factory.mktemp("bulk-api")
    database_url = f"sqlite:///{folder / 'ondol.db'}"
    api = ApiProcess(folder, database_url=database_url, redis_url=redis_server.url, message_tokens="256")
    api.start()
    yield api
    api.close()


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
