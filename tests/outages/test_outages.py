"""While the database, Redis or the store is away, the api answers within its limits, and no accepted job is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from bench.steady_load import Noted, OneTry, SteadyLoad, fate_of
from tests.cluster import Cluster, running_cluster
from tests.outages.faults import (
    LAUNCHER,
    postgres_stopped,
    read_only,
    redis_stopped,
    sqlite_locked,
    why_not_read_only,
)
from tests.servers import PostgresServer, RedisServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.integration, pytest.mark.timeout(240)]

LIMIT_S = 60
RATES = {"job": 10.0, "batch": 1.0, "call": 10.0, "upload": 3.0, "bulk": 1.0}
ENOUGH = 5
FAST = {
    "ONDOL_DATABASE_LIMIT_S": "1",
    "ONDOL_CALL_TIMEOUT_S": "5",
    "ONDOL_RUNG_UNCLAIMED_S": "2",
    "ONDOL_LEASE_S": "3",
    "ONDOL_RENEW_S": "0.8",
    "ONDOL_LEADER_LEASE_S": "2",
    "ONDOL_TICK_S": "0.5",
}


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that may die."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@contextmanager
def serving(
    folder: Path, database_url: str, redis: RedisServer, version: Path, *, launcher: Sequence[str] = ()
) -> Iterator[Cluster]:
    """Api, reconciler and one worker."""
    with running_cluster(folder, database_url=database_url, redis_url=redis.url, settings=FAST) as cluster:
        cluster.launcher = launcher
        cluster.publish(version, "tiny")
        cluster.start_api()
        cluster.start_reconciler()
        cluster.start_worker(0, faults=[])
        yield cluster


def test_database_and_redis_are_away_in_turn(
    tmp_path: Path, database_url: str, request: pytest.FixtureRequest, own_redis: RedisServer, tiny_version: Path
) -> None:
    with ExitStack() as held:
        cluster = held.enter_context(serving(tmp_path, database_url, own_redis, tiny_version))
        requests = held.enter_context(closing(OneTry(cluster.url, "tiny")))
        with SteadyLoad(requests.senders(), RATES) as load:
            wait_for(lambda: load.good_since(0.0, "job"), "a good job")
            through(load, database_away(request, tmp_path), refused=("job", "batch"), good=())
            through(load, redis_stopped(own_redis), refused=("call",), good=("job", "batch"))
        check_nothing_is_lost(cluster, load)


def test_the_store_is_read_only(tmp_path: Path, sqlite_url: str, own_redis: RedisServer, tiny_version: Path) -> None:
    with ExitStack() as held:
        cluster = held.enter_context(serving(tmp_path, sqlite_url, own_redis, tiny_version, launcher=LAUNCHER))
        store = tmp_path / "data" / "store"
        reason = why_not_read_only(store)
        if reason is not None:
            pytest.skip(reason)
        requests = held.enter_context(closing(OneTry(cluster.url, "tiny")))
        with SteadyLoad(requests.senders() | requests.store_senders(), RATES) as load:
            for what in ("job", "upload", "bulk"):
                wait_for(lambda what=what: load.good_since(0.0, what), f"a good {what}")
            through(load, read_only(store), refused=("upload",), good=("job", "batch", "call", "bulk"))
        check_nothing_is_lost(cluster, load)


def database_away(request: pytest.FixtureRequest, folder: Path) -> AbstractContextManager[None]:
    """PostgreSQL's process is stopped; SQLite is held by another writer."""
    if request.node.callspec.params["database_url"] == "sqlite":
        return sqlite_locked(folder / "ondol.db")
    server = request.getfixturevalue("postgres_server")
    assert isinstance(server, PostgresServer)
    if server.pid is None:
        pytest.skip("the configured PostgreSQL is not ours to stop")
    return postgres_stopped(server)


def through(
    load: SteadyLoad, outage: AbstractContextManager[None], *, refused: tuple[str, ...], good: tuple[str, ...]
) -> None:
    """The outage is over only when some of each kind were answered as they should while it lasted."""
    with outage:
        began_s = load.now_s
        for what in refused:
            wait_for(lambda what=what: num(load, what, began_s, is_good=False) >= ENOUGH, f"refused: {what}")
        for what in good:
            wait_for(lambda what=what: load.good_since(began_s, what), f"good meanwhile: {what}")
    over_s = load.now_s
    for what in load.senders:
        wait_for(lambda what=what: load.good_since(over_s, what), f"good again: {what}")


def num(load: SteadyLoad, what: str, since_s: float, *, is_good: bool) -> int:
    return sum(n.what == what and n.began_s >= since_s and n.is_good == is_good for n in list(load.noted))


def wait_for(look: object, what: str) -> None:
    assert callable(look)
    wait_until(look, within_s=LIMIT_S, what=what)


def check_nothing_is_lost(cluster: Cluster, load: SteadyLoad) -> None:
    """Every answer was good or said when to come back; every accepted job has succeeded, with all its shards."""
    others = [n for n in load.noted if not n.is_good and not n.is_refusal and not is_deadline(n)]
    assert not others
    ids = load.accepted()
    wait_for(lambda: fate_of(cluster.database, ids).num_unfinished == 0, "the end of all accepted jobs")
    fate = fate_of(cluster.database, ids)
    assert fate.states == {"succeeded": len(ids)}
    assert fate.num_failed_shards == 0


def is_deadline(noted: Noted) -> bool:
    """A call whose answer died with Redis is over at its deadline."""
    return noted.what == "call" and noted.status == 504
