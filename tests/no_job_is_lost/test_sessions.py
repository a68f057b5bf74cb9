"""A frozen worker loses its lease: another finishes its jobs, and when it wakes, it writes nothing of the old."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from ondol.contract.states import JobState
from ondol.sql.database import Database
from ondol.sql.tables import attempts, jobs, results, sessions
from tests.cluster import Cluster, running_cluster
from tests.job_fixtures import LIMITS, open_session, submit
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

FAST = {
    "ONDOL_LEASE_S": "3",
    "ONDOL_RENEW_S": "0.8",
    "ONDOL_RUNG_UNCLAIMED_S": "2",
    "ONDOL_LEADER_LEASE_S": "2",
    "ONDOL_TICK_S": "0.5",
}
NUM_JOBS = 40


@pytest.mark.chaos
def test_a_frozen_worker_is_overtaken_and_its_writes_are_refused(
    tmp_path: Path, postgresql_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    with running_cluster(tmp_path, database_url=postgresql_url, redis_url=empty_redis.url, settings=FAST) as cluster:
        cluster.publish(tiny_version, "tiny")
        cluster.start_api()
        cluster.start_reconciler()
        slow = cluster.start_worker(0, faults=["--delay-us-per-token", "20000"])
        ids = _submit(cluster)
        wait_until(lambda: _num(cluster, "running") > 0, within_s=30, what="the worker to claim jobs")
        first_session = _open_session_of(cluster, "cpu0")
        frozen = cluster.processes[slow]
        frozen.send_signal(signal.SIGSTOP)
        try:
            cluster.start_worker(1, faults=[])
            wait_until(lambda: _num(cluster, "succeeded") == NUM_JOBS, within_s=60, what="the other worker to finish")
            finished = _attempts_of_results(cluster)
        finally:
            frozen.send_signal(signal.SIGCONT)
        wait_until(
            lambda: _open_session_of(cluster, "cpu0") not in (None, first_session),
            within_s=30,
            what="the worker that woke to open a new session",
        )
        assert _attempts_of_results(cluster) == finished, "the zombie's results changed nothing"
        assert max(finished.values()) >= 2 and set(finished) == set(ids)
        job = httpx.post(f"{cluster.url}/v1/jobs", json={"kind": "embedding", "model": "tiny", "input": "again"}).json()
        wait_until(
            lambda: httpx.get(f"{cluster.url}/v1/jobs/{job['id']}").json()["status"] == "succeeded",
            within_s=30,
            what="a job after the thaw",
        )


def test_nothing_is_claimed_under_a_session_that_has_ended_or_lapsed(database: Database) -> None:
    job = submit(database, 1)[0]
    session_id = open_session(database)
    message = database.write(lambda uow: uow.ringing.choose(LIMITS))[0]
    lapse = sa.update(sessions).values(expires_at=1.0)
    database.write(lambda uow: uow.conn.execute(lapse))

    def claim() -> int:
        return len(database.write(lambda uow: uow.attempts.claim(message.id, session_id=session_id, worker="cpu0")))

    assert claim() == 0
    database.write(lambda uow: uow.sessions.lapse())
    assert claim() == 0
    assert database.read(lambda uow: uow.jobs.states_of([job.id]))[job.id][0] is JobState.QUEUED


def test_a_session_that_stops_hands_back_what_it_still_holds(database: Database) -> None:
    submitted = submit(database, 130)
    session_id = open_session(database)
    first, *_ = database.write(lambda uow: uow.ringing.choose(LIMITS))
    database.write(lambda uow: uow.attempts.claim(first.id, session_id=session_id, worker="cpu0@test"))
    handed_back = database.write(lambda uow: uow.sessions.stop(session_id, reason="stopped"))
    assert len(handed_back) == len(first.jobs)
    counted = sa.select(jobs.c.state, jobs.c.message_id, jobs.c.num_lapses, jobs.c.num_retries).distinct()
    assert [tuple(row) for row in database.read(lambda uow: uow.conn.execute(counted).all())] == [
        ("queued", None, 0, 0)
    ]
    assert len(submitted) == 130


def test_jobs_that_come_back_keep_their_place_before_younger_ones(database: Database) -> None:
    old = submit(database, 1)[0]
    session_id = open_session(database)
    message = database.write(lambda uow: uow.ringing.choose(LIMITS))[0]
    database.write(lambda uow: uow.attempts.claim(message.id, session_id=session_id, worker="cpu0@test"))
    submit(database, 1)
    database.write(lambda uow: uow.attempts.take_back(session_id))
    rung = database.write(lambda uow: uow.ringing.choose(LIMITS))
    assert rung[0].jobs[0] == (old.id, 1)


def test_a_job_that_may_run_later_holds_up_nobody(database: Database) -> None:
    later = submit(database, 70)
    put_off = sa.update(jobs).values(run_after=4e9)
    database.write(lambda uow: uow.conn.execute(put_off))
    now = submit(database, 2)
    open_session(database)
    rung = database.write(lambda uow: uow.ringing.choose(LIMITS))
    assert [job_id for message in rung for job_id, _ in message.jobs] == [job.id for job in now]
    assert len(later) == 70


def _submit(cluster: Cluster) -> list[str]:
    body = {"jobs": [{"kind": "embedding", "model": "tiny", "input": f"warm floor {i}"} for i in range(NUM_JOBS)]}
    answer = httpx.post(f"{cluster.url}/v1/jobs/batch", json=body, timeout=30).json()
    return [job["id"] for job in answer["data"]]


def _num(cluster: Cluster, state: str) -> int:
    query = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.state == state)
    return cluster.database.read(lambda uow: int(uow.conn.execute(query).scalar_one()))


def _attempts_of_results(cluster: Cluster) -> dict[str, int]:
    query = sa.select(results.c.job_id, attempts.c.attempt).join(
        attempts, sa.and_(attempts.c.job_id == results.c.job_id, attempts.c.outcome == "succeeded")
    )
    return {row.job_id: row.attempt for row in cluster.database.read(lambda uow: uow.conn.execute(query).all())}


def _open_session_of(cluster: Cluster, device: str) -> str | None:
    found = cluster.database.read(lambda uow: uow.sessions.open_sessions())
    return next((one.id for one in found if one.worker.startswith(f"{device}@") and one.is_ready), None)
