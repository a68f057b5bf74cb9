"""The database goes away while a job runs: shortly, and nothing happens; past the lease, and nothing is written.

Scenario 17 of `docs/reliability.md`.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
import sqlalchemy as sa

from tests.reliability.conftest import MakeHouse
from tests.reliability.house import LIMIT_S, SLOW, House
from tests.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.integration]

LEASE_S = 3.0
SHORT_S, LONG_S = 1.0, LEASE_S + 1.0
FEW_TEXTS, MANY_TEXTS = 30, 90
"""A text takes a `SLOW` device 54 ms: those jobs run longer than their outages."""


@pytest.fixture
def house(make_house: MakeHouse, database_url: str) -> Iterator[House]:
    """Api, reconciler and one worker with a slow device, on one database after the other."""
    with make_house(database_url, ONDOL_LEASE_S=f"{LEASE_S:g}", ONDOL_RENEW_S="0.9") as started:
        started.start_api()
        started.start_reconciler()
        started.start_worker(faults=SLOW)
        started.ended(started.submit("the model is warm"))
        yield started


def test_17_a_job_outlives_a_short_outage_and_is_run_again_after_a_long_one(house: House) -> None:
    session = house.session_of()
    short = house.long_job(FEW_TEXTS)
    _stand_still(house, SHORT_S)
    house.ended(short)
    assert house.attempts_of(short) == [(1, "succeeded")]
    assert house.session_of() == session, "the same lease"

    long = house.long_job(MANY_TEXTS)
    _stand_still(house, LONG_S)
    house.ended(long)
    assert house.attempts_of(long) == [(1, "lost"), (2, "succeeded")], "nothing was written after the lease"
    assert house.num_results([long]) == 1
    wait_until(lambda: house.session_of() not in (None, session), within_s=LIMIT_S, what="a session of its own again")
    assert house.lines_of("worker0", "session.lost")
    assert house.processes["worker0"].poll() is None, "the process and its models stay"
    house.ended(house.submit("after all of this"))


def _stand_still(house: House, seconds: float) -> None:
    """No process writes to the database for so long."""
    with _outage(house.database_url):
        threading.Event().wait(seconds)


@contextmanager
def _outage(url: str) -> Iterator[None]:
    """SQLite: somebody holds the lock of writers. PostgreSQL: the server ends all connections and takes none."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, timeout=30)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            yield
            holder.execute("ROLLBACK")
        return
    name = sa.make_url(url).database
    admin = sa.create_engine(
        sa.make_url(url).set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
    )
    with admin.connect() as conn:
        conn.execute(sa.text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'))
        try:
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
            conn.execute(sa.text(query), {"name": name})
            yield
        finally:
            conn.execute(sa.text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'))
    admin.dispose()
