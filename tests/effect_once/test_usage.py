"""Usage of calls is counted once, also when the database commits and cannot say so."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa

from api.database import AsyncDatabase
from api.usage_meter import Usage, UsageMeter
from ondol.sql.database import Database
from ondol.sql.tables import idempotency_keys
from tests.job_fixtures import project_of
from tests.servers import ON_POSTGRESQL
from tests.torn_postgres import TornPostgres

pytestmark = [pytest.mark.integration, ON_POSTGRESQL]

REF = "tiny:1"


def test_a_flush_whose_answer_is_lost_is_not_added_again(database: Database, link: TornPostgres) -> None:
    assert _tokens_and_marks(database, link, then_refuse=False) == (30, 1)
    assert link.num_torn == 1


def test_what_may_be_written_is_settled_before_more_is(database: Database, link: TornPostgres) -> None:
    assert _tokens_and_marks(database, link, then_refuse=True) == (30, 1)
    assert link.num_torn == 1


def _tokens_and_marks(database: Database, link: TornPostgres, *, then_refuse: bool) -> tuple[int, int]:
    """Tokens that SQL counts after two flushes of 10 and 20, the first of them torn, and the marks that stay."""
    project_id = project_of(database)
    far = Database(link.url)
    assert far.write(lambda uow: uow.now) > 0, "connected: what tears is the commit of the flush"

    async def flush_twice() -> None:
        meter = UsageMeter(AsyncDatabase(far))
        meter.add(project_id, REF, Usage(1, 1, 10))
        link.tear(then_refuse=then_refuse)
        await meter.flush()
        meter.add(project_id, REF, Usage(1, 1, 20))
        link.let_in()
        await meter.flush()
        await meter.flush()

    try:
        asyncio.run(flush_twice())
    finally:
        far.close()
    marks = sa.select(sa.func.count()).select_from(idempotency_keys)
    num_marks = database.read(lambda uow: int(uow.conn.execute(marks).scalar_one()))
    return database.read(lambda uow: uow.usage.totals(project_id))[REF][2], num_marks
