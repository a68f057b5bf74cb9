"""Somebody leads the repairs: a lead that ran out is taken over, a reconciler that stands still is replaced."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from ondol.cli.findings import Verdict
from ondol.cli.server_checks import judge_repairs
from ondol.control.heartbeat import Heartbeat
from ondol.control.troubles import Troubles, find_troubles
from ondol.control.up_watch import LoopWatch
from ondol.sql.database import Database
from ondol.sql.leaders import LAPSED, RECONCILER
from ondol.sql.tables import leaders, messages
from tests.cluster import Cluster, running_cluster
from tests.job_fixtures import LIMITS, open_session, submit
from tests.servers import RedisServer
from tests.waiting import wait_until

LIMIT_S = 30
QUICK = {"ONDOL_LEADER_LEASE_S": "2", "ONDOL_TICK_S": "0.3"}


def leads(database: Database, holder: str, *, lease_s: float = 60.0) -> bool:
    return database.write(lambda uow: uow.leaders.lead(RECONCILER, holder=holder, lease_s=lease_s))


def shift_lease(database: Database, by_s: float) -> None:
    moved = sa.update(leaders).values(expires_at=leaders.c.expires_at + by_s)
    database.write(lambda uow: uow.conn.execute(moved).rowcount)


def leaderless_s(database: Database) -> float | None:
    return database.read(lambda uow: uow.leaders.leaderless_s(RECONCILER))


@pytest.mark.integration
def test_a_lapsed_lead_is_taken_over_and_counted_a_resigned_one_only_taken_over(database: Database) -> None:
    assert leaderless_s(database) is None
    assert leads(database, "a") and not leads(database, "b")
    assert leaderless_s(database) == 0
    shift_lease(database, -100)
    assert 40 <= (leaderless_s(database) or 0) < 100
    assert leads(database, "b") and leads(database, "b")
    assert database.read(lambda uow: uow.leaders.repair_counts()) == {LAPSED: 1}
    database.write(lambda uow: uow.leaders.resign(RECONCILER, holder="b"))
    assert leads(database, "a")
    assert database.read(lambda uow: uow.leaders.repair_counts()) == {LAPSED: 1}


@pytest.mark.integration
def test_a_lease_given_by_a_clock_that_was_ahead_keeps_nobody_out_for_long(database: Database) -> None:
    assert leads(database, "a", lease_s=6)
    shift_lease(database, 600)
    assert leads(database, "b", lease_s=6)
    assert leaderless_s(database) == 0


@pytest.mark.integration
def test_what_the_doctor_sees(database: Database) -> None:
    assert judge_repairs(find_troubles(database.url)).verdict is Verdict.OK
    leads(database, "a")
    shift_lease(database, -200)
    assert find_troubles(database.url).leaderless_s > 100
    leads(database, "a")
    open_session(database, lease_s=600)
    submit(database, 1)
    database.write(lambda uow: uow.ringing.choose(LIMITS))
    assert not find_troubles(database.url).idle_workers
    database.write(lambda uow: uow.conn.execute(sa.update(messages).values(rung_at=messages.c.rung_at - 60)).rowcount)
    assert find_troubles(database.url).idle_workers == ["cpu0@test"]
    database.write(lambda uow: uow.leaders.count_repairs("worker_deaf", 2))
    assert find_troubles(database.url).recent_repairs == {"worker_deaf": 2}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("troubles", "verdict", "said"),
    [
        (Troubles(leaderless_s=29), Verdict.OK, "none"),
        (Troubles(leaderless_s=31), Verdict.BAD, "no reconciler has led for 31 s"),
        (Troubles(has_led=False), Verdict.BAD, "no reconciler has ever led"),
        (Troubles(idle_workers=("cpu0@a",)), Verdict.BAD, "cpu0@a takes none"),
        (Troubles(recent_repairs={"trainer_stalled": 3}), Verdict.NOTE, "trainer_stalled (3 ever)"),
    ],
)
def test_each_trouble_is_named(troubles: Troubles, verdict: Verdict, said: str) -> None:
    finding = judge_repairs(troubles)
    assert finding.verdict is verdict and said in finding.found
    assert finding.remedy or verdict is Verdict.OK


@pytest.mark.chaos
@pytest.mark.integration
def test_a_reconciler_that_stands_still_is_ended_and_its_successor_leads(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer
) -> None:
    with _cluster(tmp_path, sqlite_url, empty_redis) as cluster:
        process = cluster.processes["reconciler"]
        said: list[str] = []
        watch = LoopWatch(tmp_path / "data" / "run", ("reconciler",), said.append, stuck_s=1.0)
        watch.look()
        process.send_signal(signal.SIGSTOP)

        def is_ended() -> bool:
            watch.look()
            return process.poll() is not None

        wait_until(is_ended, within_s=LIMIT_S, what="the stuck reconciler to be ended")
        assert process.returncode == -signal.SIGKILL and len(said) == 1 and "reconciler" in said[0]
        cluster.restart("reconciler")  # as supervisord does
        wait_until(
            lambda: cluster.database.read(lambda uow: uow.leaders.repair_counts()).get(LAPSED) == 1,
            within_s=LIMIT_S,
            what="the successor to lead",
        )
        wait_until(lambda: leaderless_s(cluster.database) == 0, within_s=LIMIT_S, what="a leader")
        watch.look()
        watch.look()
        assert cluster.processes["reconciler"].poll() is None and len(said) == 1, "one that turns is left alone"


@pytest.mark.unit
def test_only_processes_of_ones_own_are_ended(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path, "reconciler")
    heartbeat.beat()
    assert heartbeat.pid() == os.getpid()
    os.utime(tmp_path / "reconciler.beat", (1, 1))
    watch = LoopWatch(tmp_path, ("reconciler",), pytest.fail)
    watch.look()
    watch.look()  # this process is no child of its own


@pytest.mark.chaos
@pytest.mark.integration
def test_repairs_go_on_while_redis_stands_still(tmp_path: Path, sqlite_url: str, empty_redis: RedisServer) -> None:
    with _cluster(tmp_path, sqlite_url, empty_redis) as cluster:
        submit(cluster.database, 2)
        os.kill(empty_redis.pid, signal.SIGSTOP)
        try:
            open_session(cluster.database, lease_s=2)
            wait_until(
                lambda: cluster.database.read(lambda uow: uow.leaders.repair_counts()).get("session_lapsed") == 1,
                within_s=LIMIT_S / 2,
                what="the lapsed session to be ended",
            )
            assert leaderless_s(cluster.database) == 0
        finally:
            os.kill(empty_redis.pid, signal.SIGCONT)


@pytest.mark.chaos
@pytest.mark.integration
def test_readiness_tells_of_a_missing_leader_and_stays(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer
) -> None:
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url) as cluster:
        cluster.start_api()
        leads(cluster.database, "gone")
        shift_lease(cluster.database, -160)
        answer = httpx.get(f"{cluster.url}/readyz", timeout=30)
        assert answer.status_code == 200 and answer.json()["status"] == "ready"
        check = answer.json()["checks"]["reconciler"]
        assert not check["ok"] and "no reconciler has led for" in check["reason"]
        shown = httpx.get(f"{cluster.url}/metrics", timeout=30).text
        value = next(line for line in shown.splitlines() if line.startswith("ondol_leaderless_seconds"))
        assert float(value.split()[1]) > 90


@contextmanager
def _cluster(folder: Path, database_url: str, redis: RedisServer) -> Iterator[Cluster]:
    with running_cluster(folder, database_url=database_url, redis_url=redis.url, settings=QUICK) as cluster:
        cluster.start_reconciler()
        wait_until(lambda: leaderless_s(cluster.database) == 0, within_s=LIMIT_S, what="a leader")
        yield cluster
