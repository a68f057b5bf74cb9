from __future__ import annotations

import socket

import pytest
import redis
import sqlalchemy as sa
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers import PostgresServer, RedisServer
from tests.waiting import wait_until


@pytest.mark.integration
def test_redis_keeps_its_data_over_a_restart(empty_redis: RedisServer) -> None:
    with empty_redis.client() as client:
        client.set("key", "value")
    empty_redis.restart()
    with empty_redis.client() as client:
        assert client.get("key") == "value"
        assert empty_redis.keys_without_expiry() == ["key"]
    empty_redis.flush()
    assert empty_redis.keys_without_expiry() == []


@pytest.mark.integration
def test_redis_refuses_a_client_without_the_password(redis_server: RedisServer) -> None:
    with (
        redis.Redis(host="127.0.0.1", port=redis_server.port, retry=Retry(NoBackoff(), 0)) as client,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        client.ping()


@pytest.mark.integration
def test_a_database_is_empty_and_takes_writes(database_url: str) -> None:
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    assert sa.inspect(engine).get_table_names() == []
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE probe (number INTEGER)"))
        connection.execute(sa.text("INSERT INTO probe VALUES (7)"))
        assert connection.execute(sa.text("SELECT number FROM probe")).scalar_one() == 7
    engine.dispose()


@pytest.mark.integration
def test_open_transactions_are_counted(postgres_server: PostgresServer, postgresql_url: str) -> None:
    engine = sa.create_engine(postgresql_url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        assert postgres_server.count_open_transactions(postgresql_url) == 1
    wait_until(
        lambda: postgres_server.count_open_transactions(postgresql_url) == 0, within_s=5, what="the transaction to end"
    )
    engine.dispose()


@pytest.mark.unit
def test_the_network_beyond_loopback_is_closed() -> None:
    with socket.socket() as sock, pytest.raises(AssertionError, match=r"192\.0\.2\.1"):
        sock.connect(("192.0.2.1", 80))


@pytest.mark.unit
def test_waiting_in_vain_says_for_what() -> None:
    with pytest.raises(AssertionError, match="pigs to fly"):
        wait_until(lambda: False, within_s=0.01, what="pigs to fly")
