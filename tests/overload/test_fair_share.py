"""Projects share a class by their weights, however much each has waiting; nobody starves; choosing stays cheap."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from ondol.contract.states import Priority
from ondol.sql.database import Database
from ondol.sql.fair_share import AGE_S
from ondol.sql.tables import jobs, shares
from tests.job_fixtures import LIMITS, open_database, open_session
from tests.overload.projects import REF, given, make_project, ring, ring_and_finish, wait, wait_sharded

pytestmark = pytest.mark.integration

NUM_MESSAGES = 40
MESSAGE_TOKENS = LIMITS.message_jobs * 100
"""Of jobs of 100 tokens."""


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = open_database(database_url)
    open_session(opened, lease_s=600, warm=[REF])
    yield opened
    opened.close()


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_two_projects_are_served_by_their_weights(database: Database, weight: float) -> None:
    heavy, light = make_project(database, "heavy", weight=weight), make_project(database, "light")
    wait(database, heavy, 3000, age_s=10)
    wait(database, light, 3000, age_s=1)
    ring(database)
    found = ring_and_finish(database, NUM_MESSAGES)
    assert sum(found.values()) == NUM_MESSAGES * MESSAGE_TOKENS, "messages are full"
    assert abs(found[heavy] - weight * found[light]) <= (1 + weight) * MESSAGE_TOKENS, found


def test_large_jobs_of_one_project_take_no_more_than_its_share(database: Database) -> None:
    large, small = make_project(database, "large"), make_project(database, "small")
    wait(database, large, 200, age_s=10, tokens=5_000)
    wait(database, small, 6000, age_s=1, tokens=100)
    ring(database)
    found = ring_and_finish(database, NUM_MESSAGES)
    assert abs(found[large] - found[small]) <= 2 * LIMITS.message_tokens, found


def test_many_sharded_jobs_of_one_project_are_still_one_project(database: Database) -> None:
    many, one = make_project(database, "many"), make_project(database, "one")
    for _ in range(10):
        wait_sharded(database, many, 10, age_s=10)
    wait_sharded(database, one, 60)
    ring(database)
    found = ring_and_finish(database, NUM_MESSAGES)
    assert abs(found[many] - found[one]) <= 2 * LIMITS.message_tokens, found


def test_ten_jobs_do_not_wait_behind_twenty_thousand_of_another_project(database: Database) -> None:
    large, small = make_project(database, "large"), make_project(database, "small")
    wait(database, large, 20_000, age_s=100)
    ring(database)
    wait(database, small, 10, age_s=0.001)
    assert ring_and_finish(database, 1)[small] == 10 * 100


def test_jobs_of_many_projects_share_a_message(database: Database) -> None:
    for number in range(100):
        wait(database, make_project(database, f"p{number}"), 1)
    rung = ring(database)
    assert sorted((len(message.jobs) for message in rung), reverse=True) == [64]
    assert len(given(database, ring(database))) == 36, "a round looks at 64 projects, and the next one at the rest"


def test_a_project_that_was_away_is_not_owed_its_absence(database: Database) -> None:
    always, back = make_project(database, "always"), make_project(database, "back")
    wait(database, back, 1)
    wait(database, always, 6000)
    wait(database, make_project(database, "also"), 6000)
    ring(database)
    ring_and_finish(database, 48)
    wait(database, back, 3000)
    found = ring_and_finish(database, 24)
    assert abs(found[back] - found[always]) <= 2 * LIMITS.message_tokens + MESSAGE_TOKENS, found


def test_the_least_weight_is_served_once_it_has_waited_long(database: Database) -> None:
    light = make_project(database, "light", weight=0.01)
    wait(database, make_project(database, "heavy", weight=100), 6000)
    wait(database, light, 400)
    ring(database)
    ring_and_finish(database, 4)  # its own first message is paid for by ten thousand of the other's
    assert ring_and_finish(database, 5)[light] == 0
    long_ago = database.read(lambda uow: uow.now) - AGE_S - 1
    database.write(lambda uow: uow.conn.execute(sa.update(shares).values(rung_at=long_ago)))
    database.write(
        lambda uow: uow.conn.execute(sa.update(jobs).where(jobs.c.project_id == light).values(run_after=long_ago))
    )
    found = ring_and_finish(database, 2)
    assert found[light] >= MESSAGE_TOKENS, found


def test_jobs_that_may_run_only_later_keep_nobody_waiting(database: Database) -> None:
    for number in range(70):
        wait(database, make_project(database, f"later{number}"), 1, age_s=-3600)
    now = make_project(database, "now")
    wait(database, now, 5)
    assert given(database, ring(database)) == {now: 500}


def test_behind_a_job_of_many_shards_the_projects_other_jobs_are_seen(database: Database) -> None:
    many = make_project(database, "many")
    wait(database, make_project(database, "other"), 500)
    parent = wait_sharded(database, many, 1000, age_s=10)
    wait(database, many, 5)
    ring(database)
    ring_and_finish(database, 6)
    rung = database.read(
        lambda uow: (
            uow.conn.execute(
                sa.select(jobs.c.parent_id).where(
                    jobs.c.project_id == many, jobs.c.event_seq >= 0, jobs.c.state != "queued"
                )
            )
            .scalars()
            .all()
        )
    )
    assert {parent, None} == set(rung)


def test_one_project_alone_keeps_no_account(database: Database) -> None:
    wait(database, make_project(database, "alone"), 500)
    ring(database)
    assert database.read(lambda uow: uow.conn.execute(sa.select(sa.func.count()).select_from(shares)).scalar_one()) == 0


@pytest.mark.parametrize("num_workers", [1, 20])
def test_a_round_asks_the_index_however_much_waits_and_of_however_many(database: Database, num_workers: int) -> None:
    asked: list[tuple[str, object]] = []
    for number in range(1, num_workers):
        open_session(database, f"cpu{number}@test", lease_s=600, warm=[REF])
    num_messages = num_workers * LIMITS.messages

    def note(conn: sa.Connection, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        asked.append((statement, parameters))

    for number in range(100):
        wait(database, make_project(database, f"p{number}"), 300, priority=Priority.NORMAL)
    database.write(lambda uow: uow.conn.execute(sa.text("ANALYZE")))
    plans: list[str] = []

    def explain_all(conn: sa.Connection) -> None:
        how = "EXPLAIN QUERY PLAN " if conn.dialect.name == "sqlite" else "EXPLAIN "
        for statement, parameters in asked:
            if "jobs" in statement and statement.startswith(("SELECT", "WITH")) and "FOR UPDATE" not in statement:
                rows = conn.exec_driver_sql(how + statement, parameters)  # type: ignore[arg-type]  # as the driver got them
                plans.append("\n".join(str(tuple(row)) for row in rows))

    def choose(uow: object) -> int:
        engine = uow.conn.engine  # type: ignore[attr-defined]  # a unit of work
        sa.event.listen(engine, "before_cursor_execute", note)
        rung = uow.ringing.choose(LIMITS)  # type: ignore[attr-defined]
        sa.event.remove(engine, "before_cursor_execute", note)
        return len(rung)

    assert database.write(choose) == num_messages
    num_looks = sum(statement.startswith("INSERT INTO shares") for statement, _ in asked)
    num_counts = sum("count(*)" in statement for statement, _ in asked)
    assert (num_looks, num_counts) == ((1, 0) if num_workers == 1 else (5, 4))
    assert len(asked) <= 6 + 2 * num_messages + 5 * num_looks, [statement for statement, _ in asked]
    database.read(lambda uow: explain_all(uow.conn))
    assert len(plans) == 1 + 2 * num_looks + num_counts
    for plan in plans:
        assert "ix_jobs_waiting" in plan, plan
        assert "SCAN jobs" not in plan and "Seq Scan on jobs" not in plan, plan
