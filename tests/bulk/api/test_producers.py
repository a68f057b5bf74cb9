"""A Celery producer's job is cut like any other, and its result comes back under the task's id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.bulk.api.shard_runner import ShardRunner
from tests.http.peer_worker import vector_of
from tests.producers.producer import LIMIT_S, MODEL, Producer, running_producer
from tests.producers.shop import Shop, opened_shop
from tests.servers import RedisServer

pytestmark = pytest.mark.integration

TEXTS = [f"a text about the number {i} that is long enough" for i in range(40)]
NUM_SHARDS = 3


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis whose queues no other intake reads."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def shop(tmp_path: Path, own_redis: RedisServer) -> Iterator[Shop]:
    """An intake that cuts at 256 tokens, and stores results of at most 64 KB."""
    url = f"sqlite:///{tmp_path / 'ondol.db'}"
    with opened_shop(tmp_path, database_url=url, redis_url=own_redis.url) as opened:
        opened.cluster.start_intake(ONDOL_MESSAGE_TOKENS="256", ONDOL_PRODUCER_RESULT_KB="64")
        yield opened


@pytest.fixture
def runner(shop: Shop, own_redis: RedisServer) -> Iterator[ShardRunner]:
    """What runs the shards."""
    made = ShardRunner(shop.database, own_redis.url, store_url=f"file://{shop.cluster.folder / 'data' / 'store'}")
    yield made
    made.close()


@pytest.fixture
def producer(own_redis: RedisServer) -> Iterator[Producer]:
    """An application that knows only Celery."""
    with running_producer(own_redis.url) as started:
        yield started


def test_the_result_of_a_cut_job_is_one_answer(shop: Shop, runner: ShardRunner, producer: Producer) -> None:
    task = producer.send(model=MODEL, input=TEXTS)
    job = shop.job_of(task.id)
    assert job.is_sharded and job.num_inputs == len(TEXTS)
    assert len(runner.run()) == NUM_SHARDS
    answer = task.get(timeout=LIMIT_S)
    assert [item["index"] for item in answer["data"]] == list(range(len(TEXTS)))
    for item, text in zip(answer["data"], TEXTS, strict=True):
        assert np.array_equal(np.array(item["output"], dtype=np.float32), vector_of(text))
    assert answer["usage"] == {"tokens": 12 * len(TEXTS)}
