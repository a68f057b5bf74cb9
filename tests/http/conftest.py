"""One api process for this folder on each database; each test has a project of its own. Some tests start more."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from ondol.contract.states import JobState
from ondol.sql.tables import jobs
from tests.http.api_process import ApiProcess, Member
from tests.http.peer_worker import PeerWorker
from tests.http.shared_api import api_fixture
from tests.servers import PostgresServer, RedisServer

_numbers = itertools.count(1)
_CANCEL_LEFTOVERS = sa.update(jobs).where(jobs.c.state == JobState.QUEUED).values(state=JobState.CANCELLED)

StartApi = Callable[..., ApiProcess]


shared_api = api_fixture("session")
"""An api that needs keys, for all tests that do not change it."""


@pytest.fixture
def member(shared_api: ApiProcess) -> Iterator[Member]:
    """Somebody with a project that holds the model `tiny`, and nothing else."""
    made = shared_api.member()
    yield made
    made.close()


@pytest.fixture(scope="session")
def shared_postgresql_api(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, postgres_server: PostgresServer
) -> Iterator[ApiProcess]:
    """The same on PostgreSQL."""
    database_url = postgres_server.create_database()
    api = ApiProcess(tmp_path_factory.mktemp("api"), database_url=database_url, redis_url=redis_server.url)
    api.start()
    yield api
    api.close()
    postgres_server.drop_database(database_url)


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def each_shared_api(request: pytest.FixtureRequest) -> ApiProcess:
    """The shared api, once on each database; of the session's scope, so that it runs before a test begins."""
    name = {"sqlite": "shared_api", "postgresql": "shared_postgresql_api"}[request.param]
    api: ApiProcess = request.getfixturevalue(name)
    return api


@pytest.fixture
def each_api(each_shared_api: ApiProcess) -> ApiProcess:
    """The same, where nothing that other tests left is still waiting."""
    each_shared_api.database.write(lambda uow: uow.conn.execute(_CANCEL_LEFTOVERS))
    return each_shared_api


@pytest.fixture
def member_of_each(each_api: ApiProcess) -> Iterator[Member]:
    """Somebody as `member`, once on each database."""
    made = each_api.member()
    yield made
    made.close()


@pytest.fixture
def worker(shared_api: ApiProcess, redis_server: RedisServer) -> Iterator[PeerWorker]:
    """A ready worker of the shared api."""
    # What other tests left queued would be rung for this worker too.
    shared_api.database.write(lambda uow: uow.conn.execute(_CANCEL_LEFTOVERS))
    peer = PeerWorker(shared_api.database, redis_server.url, f"peer{next(_numbers)}@test")
    yield peer
    peer.close()


@pytest.fixture
def start_api(tmp_path: Path, redis_server: RedisServer) -> Iterator[StartApi]:
    """Starts an api of this test's own, on the database URL and with the settings given."""
    started: list[ApiProcess] = []

    def start(database_url: str, *, until_ready: bool = True, **settings: str) -> ApiProcess:
        folder = tmp_path / f"api-{len(started)}"
        folder.mkdir()
        settings.setdefault("redis_url", redis_server.url)
        api = ApiProcess(folder, database_url=database_url, **settings)
        started.append(api)
        api.start(until_ready=until_ready)
        return api

    yield start
    for api in started:
        api.close()
