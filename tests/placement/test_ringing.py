"""Placement in SQL: windows are filled by warmth on both databases, and cheaply behind any backlog."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import sqlalchemy as sa

from ondol.contract.ids import new_job_id, shard_id
from ondol.contract.states import Priority
from ondol.sql.database import Database
from ondol.sql.fair_share import waiting_query
from ondol.sql.records import RungMessage
from ondol.sql.ringing import SILENT_FOR_S, WindowLimits
from ondol.sql.tables import jobs, messages, sessions
from tests.job_fixtures import LEASE_S, LIMITS, project_of, submit

pytestmark = pytest.mark.integration

NUM_WAITING = 100_000
_ROWS_AT_ONCE = 5_000


def _worker(database: Database, name: str, *warm: str, memory_bytes: int | None = None) -> str:
    session_id = database.write(
        lambda uow: uow.sessions.open(
            worker=name,
            device=name,
            device_kind="cpu",
            host="test",
            pid=1,
            lease_s=LEASE_S * 20,
            memory_bytes=memory_bytes,
        )
    )
    database.write(lambda uow: uow.sessions.renew(session_id, lease_s=LEASE_S * 20, is_ready=True, warm=warm))
    return session_id


def _wait(
    database: Database, num: int, *refs: str, priority: Priority = Priority.NORMAL, age_s: float = 0.1, tokens: int = 8
) -> None:
    """So many waiting jobs, the references by turns."""
    project_id = project_of(database)

    now = database.read(lambda uow: uow.now)
    rows = [
        _row(new_job_id(), project_id, refs[i % len(refs)], priority, now - age_s + i * 1e-9, tokens)
        for i in range(num)
    ]
    for start in range(0, num, _ROWS_AT_ONCE):
        some = rows[start : start + _ROWS_AT_ONCE]
        database.write(lambda uow, some=some: uow.conn.execute(sa.insert(jobs), some))  # type: ignore[misc]  # bound at definition


def _wait_sharded(database: Database, num: int, ref: str, *, age_s: float = 0.1) -> str:
    project_id, parent = project_of(database), new_job_id()

    def add(conn: sa.Connection, now: float) -> None:
        rows = [
            _row(shard_id(parent, i), project_id, ref, Priority.BULK, now - age_s, 16_000) | {"parent_id": parent}
            for i in range(num)
        ]
        conn.execute(sa.insert(jobs), rows)

    database.write(lambda uow: add(uow.conn, uow.now))
    return parent


def _row(
    job_id: str, project_id: str, ref: str, priority: Priority, run_after: float, tokens: int
) -> dict[str, object]:
    return {
        "id": job_id,
        "project_id": project_id,
        "kind": "embedding",
        "state": "queued",
        "priority": priority.value,
        "model_ref": ref,
        "options": {},
        "job_metadata": {},
        "num_inputs": 1,
        "estimated_tokens": tokens,
        "created_at": run_after,
        "run_after": run_after,
        "is_sharded": False,
        "parent_id": None,
    }


def _ring(database: Database) -> list[RungMessage]:
    return database.write(lambda uow: uow.ringing.choose(LIMITS))


def _refs_by_worker(database: Database, rung: Sequence[RungMessage]) -> dict[str, Counter[str]]:
    query = sa.select(jobs.c.id, jobs.c.model_ref).where(jobs.c.message_id.is_not(None))
    refs = {row.id: row.model_ref for row in database.read(lambda uow: uow.conn.execute(query).all())}
    found: dict[str, Counter[str]] = {}
    for message in rung:
        found.setdefault(message.worker, Counter()).update(refs[job_id] for job_id, _ in message.jobs)
    return found


def test_each_model_goes_where_it_is_warm_and_windows_remember_what_loads(database: Database) -> None:
    _worker(database, "w1", "a:1")
    _worker(database, "w2", "b:1")
    _worker(database, "w3")
    _wait(database, 40, "a:1", "b:1")
    _wait(database, 4, "c:1")
    found = _refs_by_worker(database, _ring(database))
    assert found == {"w1": Counter({"a:1": 20}), "w2": Counter({"b:1": 20}), "w3": Counter({"c:1": 4})}
    _wait(database, 4, "c:1")
    assert _refs_by_worker(database, _ring(database)) == {"w3": Counter({"c:1": 4})}, "it loads there: once is enough"


def test_idle_workers_copy_a_hot_model_and_the_windows_hold(database: Database) -> None:
    _worker(database, "w1", "a:1")
    _worker(database, "w2")
    _wait(database, 1000, "a:1")
    rung = _ring(database)
    assert Counter(message.worker for message in rung) == {"w1": 4, "w2": 4}
    assert _ring(database) == []
    assert len({job_id for message in rung for job_id, _ in message.jobs}) == 8 * 64


def test_many_workers_share_a_backlog_in_large_messages(database: Database) -> None:
    names = [f"w{number:02}" for number in range(32)]
    for name in names:
        _worker(database, name, "a:1")
    _wait(database, 3_000, "a:1")
    rung = database.write(lambda uow: uow.ringing.choose(WindowLimits()))
    num_jobs = Counter[str]()
    for message in rung:
        num_jobs[message.worker] += len(message.jobs)
    assert num_jobs.total() == 3_000, "in one round, however many it looks at together"
    assert len(rung) <= 35, "32, and where one look ends and the next begins"
    assert len(num_jobs) == 32 and max(num_jobs.values()) <= 2 * 94, num_jobs


def test_a_worker_whose_messages_all_lapsed_loses_preference_until_it_claims(database: Database) -> None:
    warm = _worker(database, "w1", "a:1")
    _worker(database, "w2")
    _wait(database, 2, "a:1")
    assert {message.worker for message in _ring(database)} == {"w1"}

    def recall(*, is_all: bool = False) -> int:
        return database.write(lambda uow: uow.ringing.recall_unclaimed(rung_before=None if is_all else uow.now + 1))

    assert recall(is_all=True) == 1  # Redis lost it: that says nothing of the worker
    assert {message.worker for message in _ring(database)} == {"w1"}
    assert recall() == 1  # it lapsed, and no other message is out
    assert {message.worker for message in _ring(database)} == {"w2"}
    late = database.write(lambda uow: uow.attempts.claim("msg_recalled", session_id=warm, worker="w1"))
    assert late == [], "it claims again, for once too late"
    _wait(database, 2, "a:1")
    assert {message.worker for message in _ring(database)} == {"w1"}


def test_a_worker_that_is_given_nothing_to_claim_is_silent_for_a_while_only(database: Database) -> None:
    _worker(database, "w1", "a:1")
    _worker(database, "w2")
    _wait(database, 1, "a:1")

    def ring_in_vain() -> set[str]:
        rung = {message.worker for message in _ring(database)}
        assert database.write(lambda uow: uow.ringing.recall_unclaimed(rung_before=uow.now + 1)) == 1
        return rung

    def let_pass(seconds: float) -> None:
        earlier = sa.update(sessions).values(silent_since=sessions.c.silent_since - seconds)
        database.write(lambda uow: uow.conn.execute(earlier))

    assert ring_in_vain() == {"w1"}
    let_pass(SILENT_FOR_S / 2)
    assert ring_in_vain() == {"w2"}
    let_pass(SILENT_FOR_S)
    assert ring_in_vain() == {"w1"}, "it is asked again, though another has room"
    let_pass(SILENT_FOR_S / 2)
    assert {message.worker for message in _ring(database)} == {"w2"}, "it has lapsed anew"


def test_a_job_of_many_shards_lets_later_jobs_run_beside_it(database: Database) -> None:
    _worker(database, "w1", "a:1")
    _worker(database, "w2", "a:1")
    first = _wait_sharded(database, 2000, "a:1", age_s=1.0)
    second = _wait_sharded(database, 10, "a:1", age_s=0.5)
    _wait(database, 1, "a:1", priority=Priority.BULK)
    rung = _ring(database)
    lines = Counter(message.jobs[0][0].partition(".")[0] for message in rung)
    assert len(rung) == 4 and len(lines) == 3 and lines[first] + lines[second] == 3
    assert Counter(message.worker for message in rung) == {"w1": 2, "w2": 2}
    recorded = database.read(lambda uow: uow.conn.execute(sa.select(messages.c.parent_id, messages.c.versions)).all())
    assert {row.parent_id for row in recorded} == {first, second, None}
    assert all(row.versions == ["a:1"] for row in recorded)


def test_a_session_says_how_much_its_device_holds(database: Database) -> None:
    _worker(database, "w1", memory_bytes=1 << 40)
    [session] = database.read(lambda uow: uow.sessions.open_sessions())
    assert session.memory_bytes == 1 << 40


def test_a_worker_without_a_device_gives_back_what_it_was_rung(database: Database) -> None:
    session_id = _worker(database, "w1", "tiny:1")
    submit(database, 5)
    [message] = _ring(database)
    claimed = database.write(lambda uow: uow.attempts.claim(message.id, session_id=session_id, worker="w1"))
    assert len(claimed) == 5
    database.write(lambda uow: uow.sessions.stop(session_id, reason="device_down"))
    _worker(database, "w2")
    assert _refs_by_worker(database, _ring(database)) == {"w2": Counter({"tiny:1": 5})}
    ended = database.read(
        lambda uow: uow.conn.execute(sa.select(sessions.c.end_reason).where(sessions.c.id == session_id)).scalar_one()
    )
    assert ended == "device_down"


def test_behind_a_hundred_thousand_jobs_the_index_answers(database: Database) -> None:
    _wait(database, NUM_WAITING, "a:1", "b:1", "c:1", "d:1", "e:1", age_s=1.0)
    database.write(lambda uow: uow.conn.execute(sa.text("ANALYZE")))
    query = waiting_query(Priority.NORMAL, project_of(database), 4e9).limit(128)

    def explain(conn: sa.Connection) -> str:
        text = query.compile(dialect=conn.dialect, compile_kwargs={"literal_binds": True})
        how = "EXPLAIN QUERY PLAN" if conn.dialect.name == "sqlite" else "EXPLAIN"
        return "\n".join(str(tuple(row)) for row in conn.execute(sa.text(f"{how} {text}")))

    plan = database.read(lambda uow: explain(uow.conn))
    assert "ix_jobs_waiting" in plan, plan
    assert "SORT" not in plan.upper() and "TEMP B-TREE" not in plan.upper(), plan
    _worker(database, "w1", "b:1")
    _worker(database, "w2", "d:1")
    found = _refs_by_worker(database, _ring(database))
    assert found["w1"]["b:1"] and found["w2"]["d:1"]
