"""A running intake, a worker that the tests play, and applications that know only Celery."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http.peer_worker import PeerWorker
from tests.producers.producer import Producer, running_producer
from tests.producers.shop import Shop, opened_shop
from tests.producers.venv import make_producer_venv
from tests.servers import RedisServer

API_URL = "http://ondol.test"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def shop_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that no other test empties, and whose queues no other intake reads."""
    server = RedisServer(tmp_path_factory.mktemp("shop-redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="package")
def shop(tmp_path_factory: pytest.TempPathFactory, shop_redis: RedisServer) -> Iterator[Shop]:
    """An intake over SQLite with two models."""
    folder = tmp_path_factory.mktemp("shop")
    url = f"sqlite:///{folder / 'ondol.db'}"
    with opened_shop(folder, database_url=url, redis_url=shop_redis.url) as opened:
        opened.cluster.start_intake(ONDOL_PUBLIC_URL=API_URL, ONDOL_PRODUCER_RESULT_KB="8")
        yield opened


@pytest.fixture
def worker(shop: Shop, shop_redis: RedisServer) -> Iterator[PeerWorker]:
    """A worker that completes what the test tells it to; its window is new, so name it anew."""
    peer = PeerWorker(shop.database, shop_redis.url, f"peer{next(_numbers)}@test", answers_calls=False)
    yield peer
    peer.close()


@pytest.fixture
def producer(shop: Shop, shop_redis: RedisServer) -> Iterator[Producer]:
    """An application that sends to the intake of the shop."""
    with running_producer(shop_redis.url) as started:
        yield started


@pytest.fixture(scope="session")
def producer_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with Celery and without Ondol."""
    return make_producer_venv(tmp_path_factory.mktemp("producer") / "venv")
