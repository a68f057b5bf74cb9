"""Processes that end, cancel and claim shards of one job at once leave it with one end, and make no knot."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from ondol.contract.errors import IllegalTransition
from ondol.contract.states import JobState
from ondol.sql.database import Database, Work
from ondol.sql.records import ClaimedJob
from ondol.sql.tables import results
from ondol.sql.unit_of_work import UnitOfWork
from tests.bulk.sql.sharded import (
    claim,
    claim_all,
    complete,
    done,
    events_of,
    look,
    reasons_of,
    submit_sharded,
    unfinished_ids,
)
from tests.job_fixtures import open_session
from tests.servers import ON_POSTGRESQL

pytestmark = [pytest.mark.integration, ON_POSTGRESQL]

ROUNDS = 12


@pytest.fixture
def others(database: Database) -> Iterator[list[Database]]:
    """Other processes' ways to the same database."""
    opened = [Database(database.url) for _ in range(3)]
    yield opened
    for other in opened:
        other.close()


def _at_once(*works: Callable[[], Any]) -> list[Any]:
    start = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> Any:
        start.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, works))


def test_two_sessions_that_complete_the_last_two_shards_end_the_job_once(
    database: Database, others: list[Database], deadlocks: list[str]
) -> None:
    session_id = open_session(database)
    for _ in range(ROUNDS):
        job = submit_sharded(database, [1, 1])
        first, second = claim_all(database, session_id)
        _at_once(lambda a=first: complete(others[0], [a]), lambda b=second: complete(others[1], [b]))  # type: ignore[misc]  # bound at definition
        ended = look(database, job)
        assert (ended.state, ended.num_done) == (JobState.SUCCEEDED, 2)
        assert reasons_of(database, job) == ["accepted", "shard_claimed", "shards_ended"]
        told = [e.data["done"] for e in events_of(database, job) if e.type == "progress"]
        assert told == [1, 2]
    count = sa.select(sa.func.count()).select_from(results)
    assert database.read(lambda uow: uow.conn.execute(count).scalar_one()) == 3 * ROUNDS
    assert deadlocks == []


def test_groups_that_touch_two_jobs_in_opposite_order_are_run_again(
    database: Database, others: list[Database], deadlocks: list[str]
) -> None:
    session_id = open_session(database)
    pair = [submit_sharded(database, [1, 1]) for _ in range(2)]
    claimed = {one.id: one for one in claim_all(database, session_id)}
    has_begun = [threading.Event(), threading.Event()]

    def unit(one: ClaimedJob, mine: threading.Event, other: threading.Event) -> Work[list[str]]:
        def work(uow: UnitOfWork) -> list[str]:
            recorded = uow.attempts.complete([done(one)], worker="cpu0@test")
            mine.set()
            assert other.wait(30), "both hold their first job before either asks for its second"
            return recorded

        return work

    def group(which: int) -> list[str]:
        """One shard of each job in one transaction: what is handed over while the writer is busy is one group."""
        first, second = (claimed[f"{pair[job].id}.00000{which}"] for job in (which, 1 - which))
        is_busy, is_queued = threading.Event(), threading.Event()

        def keep_busy(_: UnitOfWork) -> bool:
            is_busy.set()
            return is_queued.wait(30)

        others[which].submit(keep_busy)
        assert is_busy.wait(30)
        one = others[which].submit(unit(first, has_begun[which], has_begun[1 - which]))
        two = others[which].submit(unit(second, has_begun[which], has_begun[which]))
        is_queued.set()
        return one.result() + two.result()

    found = _at_once(lambda: group(0), lambda: group(1))
    assert deadlocks, "the two groups have met"
    assert sorted(found[0] + found[1]) == sorted(claimed)
    for job in pair:
        assert (look(database, job).state, look(database, job).num_done) == (JobState.SUCCEEDED, 2)
        assert reasons_of(database, job) == ["accepted", "shard_claimed", "shards_ended"]


def test_cancelling_beside_claims_and_completions_makes_no_knot(
    database: Database, others: list[Database], deadlocks: list[str]
) -> None:
    session_id = open_session(database)
    for _ in range(ROUNDS):
        job = submit_sharded(database, [1] * 12)
        ids = unfinished_ids(database, job)
        claimed = claim(database, ids[:4], session_id, "cpu0@test")

        def cancel(job: Any = job) -> bool:
            try:
                others[0].write(lambda uow: uow.jobs.cancel(job.id, job.project_id))
            except IllegalTransition:
                return False
            return True

        def complete_each(claimed: Any = claimed) -> int:
            return sum(len(complete(others[1], [one])) for one in claimed)

        def claim_rest(ids: Any = ids) -> int:
            return len(claim(others[2], ids[4:], session_id, "cpu0@test"))

        was_cancelled, num_completed, _ = _at_once(cancel, complete_each, claim_rest)
        assert was_cancelled, "four of twelve shards cannot have ended the job"
        found = database.read(lambda uow, j=job: uow.shards.page(j.id, limit=20))  # type: ignore[misc]  # bound at definition
        assert sum(shard.state is JobState.SUCCEEDED for shard in found) == num_completed
        assert {shard.state for shard in found} <= {JobState.SUCCEEDED, JobState.CANCELLED}
        assert look(database, job).num_done == num_completed
        events_of(database, job)
    assert deadlocks == []
