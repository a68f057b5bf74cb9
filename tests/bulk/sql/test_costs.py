"""What shards cost, in statements: a shard the same however many its job has, and plain jobs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from ondol.sql.database import Database
from tests.bulk.sql.sharded import claim, claim_all, complete, done, submit_sharded, unfinished_ids
from tests.job_fixtures import new_job, open_session, project_of, submit
from tests.servers import ON_SQLITE

pytestmark = pytest.mark.integration


def _statements(work: Callable[[], Any]) -> list[str]:
    """Every statement that reaches the server meanwhile, and none that only begins or ends a transaction."""
    seen: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")):
            seen.append(statement)

    event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        work()
    finally:
        event.remove(sa.Engine, "before_cursor_execute", note)
    return [statement for statement in seen if "clock_timestamp" not in statement]


def test_plain_jobs_are_accepted_claimed_and_completed_in_a_few_statements(database: Database) -> None:
    project_id = project_of(database)
    new = [new_job(project_id) for _ in range(64)]
    assert len(_statements(lambda: database.write(lambda uow: uow.jobs.add_all(new)))) == 3
    session_id = open_session(database)
    claimed: list[Any] = []
    rung = _statements(lambda: claimed.extend(claim(database, [job.id for job in new], session_id, "cpu0@test")))
    assert len(rung) == 2 + 6, "two that ring; then session, message, jobs, attempts, events, inputs"
    assert len(claimed) == 64
    assert len(_statements(lambda: complete(database, claimed))) == 4, "jobs, results, attempts, events"


def test_a_shard_of_many_ends_in_as_many_statements_as_one_of_few(database: Database) -> None:
    session_id = open_session(database)
    costs = []
    for num_shards in (3, 300):
        job = submit_sharded(database, [1] * num_shards)
        ids = unfinished_ids(database, job)
        first, second = claim(database, ids[:2], session_id, "cpu0@test")
        complete(database, [first])
        costs.append(len(_statements(lambda one=second: complete(database, [one]))))  # type: ignore[misc]  # bound at definition
    assert costs[0] == costs[1] <= 8, "four of every job; then its job's lock, its inputs, the count and the event"


@ON_SQLITE
def test_jobs_are_completed_without_reading_the_jobs_that_have_ended(database: Database) -> None:
    submit(database, 2)
    claimed = claim_all(database, open_session(database))
    fence = next(
        statement
        for statement in _statements(lambda: database.write(lambda uow: uow.attempts.complete([*map(done, claimed)])))
        if statement.startswith("UPDATE jobs")
    )
    where = fence.partition(" WHERE ")[2].partition(" RETURNING ")[0]
    plan = sa.text(f"EXPLAIN QUERY PLAN SELECT id FROM jobs WHERE {where.replace('?', '1')}")
    steps = [row.detail for row in database.read(lambda uow: uow.conn.execute(plan).all())]
    assert any("SEARCH jobs USING" in step for step in steps) and not any("SCAN jobs" in step for step in steps)
