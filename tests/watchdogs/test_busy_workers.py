"""A worker that hears well is not called deaf: not while all its handlers are busy, nor for what others have rung."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ondol.broker.celery_app import queue_name
from ondol.broker.lying import QueueLook
from ondol.broker.publisher import Publisher
from ondol.contract.states import Priority
from ondol.control.ringer import Ringer
from ondol.sql.database import Database
from ondol.sql.ringing import WindowLimits
from tests.cluster import running_cluster
from tests.job_fixtures import new_job, open_database, open_session, project_of, submit
from tests.servers import RedisServer
from tests.waiting import LONGEST_POLL_S, wait_until
from tests.watchdogs.test_deaf_workers import QUICK, add_jobs, repairs
from workers.hearing import Hearing
from workers.session import SessionKeeper, WorkerIdentity
from workers.work_watch import WorkWatch

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

LIMIT_S = 60
UNHEARD_S = 2.0
NUM_HANDLERS = 4
ME, OTHER = "cpu0@test", "cpu1@test"


def test_a_worker_whose_handlers_are_all_busy_is_not_deaf(
    tmp_path: Path, sqlite_url: str, empty_redis: RedisServer, tiny_version: Path
) -> None:
    settings = QUICK | {"ONDOL_RUNG_UNCLAIMED_S": "60", "ONDOL_WINDOW_MESSAGES": "8", "ONDOL_MESSAGE_JOBS": "1"}
    with running_cluster(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url, settings=settings) as cluster:
        cluster.publish(tiny_version, "tiny")
        cluster.environment |= {"ONDOL_WINDOW_MESSAGES": "1", "ONDOL_WINDOW_BULK_MESSAGES": "1"}
        cluster.environment["ONDOL_HANDLER_THREADS"] = str(NUM_HANDLERS)
        cluster.start_worker(0, faults=["--delay-us-per-token", "1000000"])
        add_jobs(cluster, 4 * NUM_HANDLERS)
        cluster.environment["ONDOL_WINDOW_MESSAGES"] = "8"
        cluster.start_reconciler()
        [session] = cluster.database.read(lambda uow: uow.sessions.open_sessions())
        look = QueueLook(empty_redis.url, [queue_name(session.worker, Priority.NORMAL)])
        try:
            wait_until(look.num_lying, within_s=LIMIT_S, what="messages to lie behind busy handlers")
            looks = iter(range(int(3 * UNHEARD_S / LONGEST_POLL_S)))
            wait_until(
                lambda: not look.num_lying() or next(looks, None) is None,
                within_s=LIMIT_S,
                what="them to lie for long",
            )
            assert look.num_lying(), "they lay for longer than a deaf worker may"
        finally:
            look.close()
        assert not {"worker_deaf", "worker_restarted"} & repairs(cluster).keys()
        assert cluster.processes["worker0"].poll() is None


@pytest.fixture
def watched(sqlite_url: str, empty_redis: RedisServer) -> Iterator[tuple[WorkWatch, Hearing, Database]]:
    """A watch that looks when a test says so, over a real queue and a real session; nobody takes messages."""
    database = open_database(sqlite_url)
    hearing = Hearing()
    ringer = Ringer(database, Publisher(empty_redis.url), WindowLimits())
    session = SessionKeeper(
        database,
        WorkerIdentity(ME, "cpu:0", "cpu", "test", 1),
        lease_s=60,
        renew_s=1,
        is_ready=lambda: False,
        warm=list,
        on_lost=lambda: None,
    )
    watch = WorkWatch(
        database=database,
        queues=QueueLook(empty_redis.url, [queue_name(ME, Priority.NORMAL)]),
        ringer=ringer,
        session=lambda: session,
        worker=ME,
        hearing=hearing,
        is_idle=lambda: True,
        end=lambda: pytest.fail("the process was to end"),
        unheard_s=UNHEARD_S,
    )
    session.start()
    wait_until(session.current, within_s=LIMIT_S, what="a session")
    yield watch, hearing, database
    watch._queues.close()
    session.end(reason="stopped")
    ringer.close()
    database.close()


def counted(database: Database) -> dict[str, int]:
    return database.read(lambda uow: uow.leaders.repair_counts())


def look(watch: WorkWatch, *, times: int = 1) -> None:
    """Looks at which the limit of silence is over."""
    for _ in range(times):
        watch._look(UNHEARD_S + 0.1)


def wait_in_vain(database: Database) -> None:
    """A job that has waited for longer than an idle worker lets it."""
    job = replace(new_job(project_of(database)), run_after=database.read(lambda uow: uow.now) - 60)
    database.write(lambda uow: uow.jobs.add_all([job]))


def is_rung(database: Database) -> bool:
    """Whether the waiting job is named by a message."""
    return database.read(lambda uow: uow.ringing.num_waiting()) == 0


def test_what_is_heard_long_after_the_own_bell_is_no_repair(
    watched: tuple[WorkWatch, Hearing, Database],
) -> None:
    watch, hearing, database = watched
    wait_in_vain(database)
    look(watch)
    hearing.heard()
    look(watch)
    assert counted(database) == {"backlog_idle": 1}, "its own bell, or one that rang at the same time"
    open_session(database, OTHER, lease_s=60)  # the next bell is for another, and that one takes the work
    look(watch)
    wait_until(lambda: is_rung(database), within_s=LIMIT_S, what="the job to be rung for the other worker")
    look(watch)
    hearing.heard()  # a day later
    look(watch)
    assert counted(database) == {"backlog_idle": 1}


def test_each_deafness_is_cured_by_a_new_connection_first(
    watched: tuple[WorkWatch, Hearing, Database], empty_redis: RedisServer
) -> None:
    watch, hearing, database = watched
    queue = queue_name(ME, Priority.NORMAL)
    with empty_redis.client() as client:
        for number in range(1, 4):
            client.lpush(queue, "{}")
            look(watch, times=2)
            assert hearing.take_wish(), "it is to connect anew"
            assert counted(database) == {"worker_deaf": number}
            client.delete(queue)  # taken by nobody who says so: its messages were recalled, or lost with Redis
            look(watch)
    assert submit(database, 1)
