"""A message whose deadline cannot be met is answered, and keeps no place from others while it waits for room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from api.admission import Admission, Limits
from api.database import AsyncDatabase
from api.intake.main import CONCURRENCY
from api.intake.receiving import IntakeServices, ProducerMessage, Receiver
from api.intake.results import ProducerResults
from api.model_lookup import ModelLookup
from ondol.broker.celery_app import make_intake_app
from ondol.broker.publisher import Publisher
from ondol.broker.wake import WakeBus
from ondol.contract.errors import DeadlineExceeded
from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState
from ondol.control.ringer import Ringer, window_limits
from ondol.settings import IntakeSettings
from ondol.sql.tables import jobs
from ondol.sql.unit_of_work import UnitOfWork
from tests.overload.projects import wait
from tests.producers.producer import MODEL
from tests.producers.shop import Shop, opened_shop
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

MANY = 10**9
NUM_ENDED, NUM_WAITING = 30, 600
"""Ended in the last half minute: one a second, so that what waits takes ten minutes."""


@dataclass(frozen=True, slots=True)
class Desk:
    """The receiver of an intake as its node has it, without the node."""

    shop: Shop
    redis_url: str

    def run(self, work: Callable[[Receiver], Coroutine[Any, Any, Any]], limits: Limits) -> Any:
        """What `work` gives on an event loop of its own."""

        async def on_loop() -> Any:
            database = AsyncDatabase(self.shop.database)
            receiver = Receiver(
                IntakeServices(
                    settings=settings,
                    database=database,
                    models=ModelLookup(database),
                    admission=Admission(database, limits),
                    ringer=ringer,
                    wake=wake,
                    results=ProducerResults(app),
                    revoked=frozenset(),
                    stopping=asyncio.Event(),
                )
            )
            return await asyncio.wait_for(work(receiver), 60)

        settings = IntakeSettings()
        with (
            closing(make_intake_app(self.redis_url, result_s=60)) as app,
            closing(WakeBus(self.redis_url)) as wake,
            closing(Ringer(self.shop.database, Publisher(self.redis_url), window_limits(settings))) as ringer,
        ):
            try:
                return asyncio.run(on_loop())
            finally:
                app.backend.client.close()


@pytest.fixture
def desk(tmp_path: Path, sqlite_url: str, empty_redis: RedisServer) -> Iterator[Desk]:
    with opened_shop(tmp_path, database_url=sqlite_url, redis_url=empty_redis.url) as shop:
        yield Desk(shop, empty_redis.url)


def message(task_id: str, **fields: Any) -> ProducerMessage:
    body = {"model": MODEL, "input": ["a text"], **fields}
    return ProducerMessage(task_id, JobKind.EMBEDDING, body, not_before=None, ignores_result=False, num_bytes=100)


def test_messages_with_deadlines_that_cannot_be_met_hold_up_none_without(desk: Desk) -> None:
    shop = desk.shop
    wait(shop.database, shop.project_id, NUM_ENDED)
    shop.database.write(_end_all)
    wait(shop.database, shop.project_id, NUM_WAITING)

    async def record_all(receiver: Receiver) -> list[str | BaseException]:
        late = [receiver.record(message(f"late-{i}", deadline_s=5)) for i in range(CONCURRENCY)]
        refused = await asyncio.gather(*late, return_exceptions=True)
        return [*refused, await receiver.record(message("patient"))]

    *refused, recorded = desk.run(record_all, Limits(MANY, MANY))
    assert all(isinstance(error, DeadlineExceeded) and error.param == "deadline_s" for error in refused), refused
    assert shop.job_of("patient").id == recorded and shop.count("late-0") == 0


def test_the_deadline_goes_on_while_a_message_waits_for_room(desk: Desk) -> None:
    shop = desk.shop
    wait(shop.database, shop.project_id, 1)

    async def record_both(receiver: Receiver) -> tuple[Any, Any]:
        patient = asyncio.create_task(receiver.record(message("patient", deadline_s=600)))
        late = asyncio.create_task(receiver.record(message("late", deadline_s=0.5)))
        await asyncio.to_thread(wait_until, late.done, within_s=30, what="its deadline")
        await asyncio.to_thread(shop.database.write, _end_all)
        return await patient, (await asyncio.gather(late, return_exceptions=True))[0]

    recorded, error = desk.run(record_both, Limits(1, MANY))
    job = shop.job_of("patient")
    assert job.id == recorded and job.deadline_at is not None
    assert 0 < job.deadline_at - job.created_at < 600, "what it waited for room is over"
    assert isinstance(error, DeadlineExceeded) and shop.count("late") == 0


def _end_all(uow: UnitOfWork) -> None:
    ended = {"state": JobState.SUCCEEDED.value, "finished_at": uow.now - 1}
    uow.conn.execute(sa.update(jobs).where(jobs.c.finished_at.is_(None)).values(**ended))
