"""Messages over outages and restarts: each becomes one job, whichever intake takes it and how often."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import states

from tests.producers.producer import LIMIT_S, Producer, running_producer
from tests.producers.shop import Shop, opened_shop
from tests.servers import RedisServer
from tests.torn_postgres import TornPostgres, torn_postgres
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

NUM_TASKS = 40


@pytest.fixture
def producer(empty_redis: RedisServer) -> Iterator[Producer]:
    """An application beside the shop of this test alone."""
    with running_producer(empty_redis.url) as started:
        yield started


@pytest.fixture
def torn(postgresql_url: str) -> Iterator[TornPostgres]:
    """The link by which the first intake reaches the database."""
    with torn_postgres(postgresql_url) as link:
        yield link


@pytest.fixture
def dark_shop(tmp_path: Path, postgresql_url: str, empty_redis: RedisServer) -> Iterator[Shop]:
    """A shop over PostgreSQL in which nothing is started."""
    with opened_shop(tmp_path, database_url=postgresql_url, redis_url=empty_redis.url) as opened:
        yield opened


def test_each_task_becomes_one_job_over_an_outage(
    dark_shop: Shop, torn: TornPostgres, producer: Producer, empty_redis: RedisServer
) -> None:
    """The first intake loses the database behind a commit, gives its messages back, and two others take them."""
    cluster = dark_shop.cluster
    cluster.start_intake("first", ONDOL_DATABASE_URL=torn.url)
    before = producer.embed(task_id="before")
    dark_shop.job_of(before.id)
    torn.tear(then_refuse=True)
    ids = [f"order-{i}" for i in range(NUM_TASKS)]
    for task_id in ids:
        producer.embed(task_id=task_id)
    wait_until(lambda: "intake.waits" in cluster.log_of("first"), within_s=LIMIT_S, what="the intake to wait")
    assert cluster.terminate("first") == 0
    with empty_redis.client() as client:
        assert client.hlen("ondol.intake.unacked") == 0
        assert client.llen("celery") + dark_shop.count() >= NUM_TASKS
    for name in ("second", "third"):
        cluster.start_intake(name)
    for task_id in ids:  # and every message once more, for either of the two
        producer.embed(task_id=task_id)
    for task_id in ids:
        dark_shop.job_of(task_id)
    with empty_redis.client() as client:
        wait_until(
            lambda: client.llen("celery") + client.hlen("ondol.intake.unacked") == 0,
            within_s=LIMIT_S,
            what="every message to be acknowledged",
        )
    assert dark_shop.count() == NUM_TASKS + 1
    for name in ("second", "third"):
        cluster.kill(name)
    dark_shop.database.write(lambda uow: uow.jobs.cancel(dark_shop.job_of("order-0").id, dark_shop.project_id))
    cluster.restart("second")  # a job that ended while no intake lived is answered by the next one
    producer.wait_for_state(producer.app.AsyncResult("order-0"), states.REVOKED)
    assert producer.app.AsyncResult(before.id).state == states.RECEIVED


def test_a_message_that_waits_for_room_outlives_the_intake(
    tmp_path: Path, producer: Producer, empty_redis: RedisServer
) -> None:
    url = f"sqlite:///{tmp_path / 'ondol.db'}"
    with opened_shop(tmp_path, database_url=url, redis_url=empty_redis.url) as shop:
        shop.cluster.start_intake(ONDOL_MAX_QUEUED_JOBS="1")
        first = producer.embed(task_id="first")
        shop.job_of(first.id)
        second = producer.embed(task_id="second")
        wait_until(lambda: '"overloaded"' in shop.cluster.log_of("intake"), within_s=LIMIT_S, what="a full queue")
        shop.cluster.kill("intake")
        assert shop.count() == 1
        with empty_redis.client() as client:  # as if the minute were over that a dead intake has
            [held] = client.zrange("ondol.intake.unacked_index", 0, -1)
            client.zadd("ondol.intake.unacked_index", {str(held): 1})
        shop.database.write(lambda uow: uow.jobs.cancel(shop.job_of(first.id).id, shop.project_id))
        shop.cluster.restart("intake")
        shop.job_of(second.id)
        producer.wait_for_state(first, states.REVOKED)
        producer.wait_for_state(second, states.RECEIVED)
