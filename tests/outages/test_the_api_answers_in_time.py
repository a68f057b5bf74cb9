"""A database that stands still is answered with 503 in the api's own time, and what was given up is never done."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import sqlalchemy as sa

from api.database import AsyncDatabase
from api.errors import error_response
from api.idempotency import Answer, KeyedRequest, Make, answer_once
from api.services import Services
from ondol.contract.errors import DatabaseUnavailable, StoreUnavailable
from ondol.settings import ApiSettings, ReconcilerSettings, WorkerSettings
from ondol.sql.database import Database
from ondol.sql.records import ClaimedJob
from ondol.sql.tables import projects
from ondol.sql.unit_of_work import UnitOfWork
from tests.outages.faults import sqlite_locked
from tests.servers import ON_SQLITE
from tests.waiting import wait_until
from workers.outcomes import failure_of

pytestmark = [pytest.mark.integration, ON_SQLITE]

LIMIT_S = 0.2
ASKED_S = 10.0
"""Within which the jobs of a worker that was killed run elsewhere."""
CLIENT_TIMEOUT_S = 60.0
STORE_AWAY_S = 30.0


def test_a_write_that_was_given_up_is_never_done(database: Database, tmp_path: Path) -> None:
    async def write(name: str, limit_s: float | None) -> str:
        return await AsyncDatabase(database, limit_s=limit_s).write(lambda uow: uow.keys.ensure_project(name))

    with sqlite_locked(tmp_path / "ondol.db"):
        with pytest.raises(DatabaseUnavailable, match="did not answer within"):
            asyncio.run(write("given-up", LIMIT_S))
        database.read(names_of_projects)  # readers go on
    asyncio.run(write("waited-for", None))
    assert "given-up" not in database.read(names_of_projects)
    assert "waited-for" in database.read(names_of_projects)


def test_a_write_that_had_begun_may_be_done_and_is_not_to_be_repeated_without_a_key(database: Database) -> None:
    may_go_on = threading.Event()

    def slow(uow: UnitOfWork) -> str:
        assert may_go_on.wait(30)
        return uow.keys.ensure_project("slow")

    async def ask(keyed: KeyedRequest | None) -> DatabaseUnavailable:
        limited = AsyncDatabase(database, limit_s=LIMIT_S)
        services = cast(Services, SimpleNamespace(database=limited))

        async def prepare(held: ExitStack) -> Make:
            return lambda uow: Answer(202, slow(uow).encode())

        with pytest.raises(DatabaseUnavailable) as caught:
            await answer_once(services, keyed, prepare)
        return caught.value

    unkeyed = asyncio.run(ask(None))
    assert unkeyed.may_be_done and error_response(unkeyed).headers["x-should-retry"] == "false"
    may_go_on.set()
    wait_until(lambda: "slow" in database.read(names_of_projects), within_s=5, what="what was given up to be done")


def test_a_read_is_waited_for_no_longer_than_a_write(database: Database) -> None:
    is_over = asyncio.Event()

    async def read() -> None:
        loop, other = asyncio.get_running_loop(), AsyncDatabase(database, limit_s=LIMIT_S)

        def stuck(uow: UnitOfWork) -> None:
            uow.conn.execute(sa.select(1))
            asyncio.run_coroutine_threadsafe(is_over.wait(), loop).result()

        with pytest.raises(DatabaseUnavailable, match="did not answer within"):
            await other.read(stuck)
        is_over.set()

    asyncio.run(read())
    wait_until(lambda: database.read(names_of_projects), within_s=5, what="the next read")


def test_what_nobody_waits_for_has_no_limit(database: Database, tmp_path: Path) -> None:
    async def write() -> str:
        limited = AsyncDatabase(database, limit_s=LIMIT_S)
        with sqlite_locked(tmp_path / "ondol.db"):
            patient = asyncio.create_task(limited.without_limit().write(lambda uow: uow.keys.ensure_project("patient")))
            with pytest.raises(DatabaseUnavailable):
                await limited.write(lambda uow: uow.keys.ensure_project("limited"))
            assert not patient.done()
        return await patient

    asyncio.run(write())
    assert "patient" in database.read(names_of_projects)


def test_the_defaults_fit_each_other() -> None:
    api, worker, reconciler = ApiSettings(auth="off"), WorkerSettings(), ReconcilerSettings()
    assert max(api.database_limit_s, api.call_timeout_s) < CLIENT_TIMEOUT_S
    noticed_s = worker.lease_s + 2 * reconciler.tick_s
    assert noticed_s < ASKED_S, "a lapsed lease is seen by the next round of the reconciler, which rings at its end"


def test_a_job_outlasts_a_store_that_is_away_for_half_a_minute() -> None:
    def pause_s(attempt: int) -> float:
        job = cast(ClaimedJob, SimpleNamespace(id="job_1", attempt=attempt))
        return failure_of(job, StoreUnavailable("read-only")).retry_after_s or 0.0

    assert sum(pause_s(attempt) for attempt in range(1, WorkerSettings().max_attempts)) > STORE_AWAY_S


def names_of_projects(uow: UnitOfWork) -> list[str]:
    return list(uow.conn.execute(sa.select(projects.c.name)).scalars())
