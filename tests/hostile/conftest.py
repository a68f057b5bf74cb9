"""A small Ondol of real processes whose device hashes instead of computing, for everybody who sends it nonsense."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.stand import Stand, running_stand
from tests.servers import PostgresServer, RedisServer


@pytest.fixture(scope="package")
def stand_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that no other test empties."""
    server = RedisServer(tmp_path_factory.mktemp("hostile-redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="package")
def stand(tmp_path_factory: pytest.TempPathFactory, stand_redis: RedisServer, tiny_version: Path) -> Iterator[Stand]:
    """Api, worker, intake and reconciler over SQLite, open to everybody."""
    folder = tmp_path_factory.mktemp("hostile")
    url = f"sqlite:///{folder / 'ondol.db'}"
    with running_stand(folder, tiny_version, database_url=url, redis_url=stand_redis.url) as started:
        yield started


@pytest.fixture(scope="package")
def keyed_stand(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: PostgresServer,
    tiny_version: Path,
) -> Iterator[Stand]:
    """The same over PostgreSQL, which asks for keys. Its worker has the other's name, so its Redis is its own."""
    folder = tmp_path_factory.mktemp("hostile-keyed")
    url = postgres_server.create_database()
    redis = RedisServer(tmp_path_factory.mktemp("hostile-keyed-redis"))
    redis.start()
    with running_stand(folder, tiny_version, database_url=url, redis_url=redis.url, ONDOL_AUTH="keys") as started:
        yield started
    redis.stop()
    postgres_server.drop_database(url)
