"""Several projects with waiting jobs, written straight into the tables, and windows that empty by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from ondol.contract.ids import new_job_id
from ondol.contract.states import JobState, Priority
from ondol.sql.database import Database
from ondol.sql.records import RungMessage
from ondol.sql.ringing import WindowLimits
from ondol.sql.tables import jobs, messages
from ondol.sql.unit_of_work import UnitOfWork
from tests.job_fixtures import LIMITS

REF = "a:1"
"""The model of all jobs."""
_ROW: dict[str, object] = {
    "kind": "embedding",
    "state": "queued",
    "model_ref": REF,
    "options": {},
    "job_metadata": {},
    "num_inputs": 1,
    "num_done": 0,
    "attempt": 0,
    "num_retries": 0,
    "num_lapses": 0,
    "num_losses": 0,
    "is_alone": False,
    "event_seq": 0,
    "is_call": False,
    "is_sharded": False,
}


def make_project(database: Database, name: str, *, weight: float = 1.0) -> str:
    """A project's id."""

    def make(uow: UnitOfWork) -> str:
        project_id = uow.keys.ensure_project(name)
        uow.keys.set_project(name, {"weight": weight})
        return project_id

    return database.write(make)


def wait(
    database: Database,
    project_id: str,
    num: int,
    *,
    priority: Priority = Priority.NORMAL,
    age_s: float = 1.0,
    tokens: int = 100,
) -> None:
    """So many waiting jobs of the project, the oldest of that age; a negative age: they may run only later."""
    _insert(
        database,
        num,
        new_job_id(),
        project_id=project_id,
        priority=priority,
        age_s=age_s,
        step_s=1e-6,
        tokens=tokens,
        parent_id=None,
    )


def wait_sharded(database: Database, project_id: str, num: int, *, age_s: float = 1.0) -> str:
    """So many waiting shards of a whole message each of one sharded job, whose own row is left out; its id."""
    parent = new_job_id()
    _insert(
        database,
        num,
        f"{parent}.",
        project_id=project_id,
        priority=Priority.NORMAL,
        age_s=age_s,
        step_s=0.0,
        tokens=16_000,
        parent_id=parent,
    )
    return parent


def ring(database: Database, limits: WindowLimits = LIMITS) -> list[RungMessage]:
    """One round."""
    return database.write(lambda uow: uow.ringing.choose(limits))


def finish_oldest(database: Database) -> None:
    """The jobs of the message that was rung first have succeeded, and its handler is done."""

    def finish(uow: UnitOfWork) -> None:
        message_id = uow.conn.execute(sa.select(messages.c.id).order_by(messages.c.id).limit(1)).scalar_one()
        done = {"state": JobState.SUCCEEDED.value, "finished_at": uow.now, "message_id": None}
        uow.conn.execute(sa.update(jobs).where(jobs.c.message_id == message_id).values(**done))
        uow.ringing.finish(message_id)

    database.write(finish)


def given(database: Database, rung: Sequence[RungMessage]) -> Counter[str]:
    """Tokens of the jobs of these messages, by project."""
    ids = [job_id for message in rung for job_id, _ in message.jobs]
    query = sa.select(jobs.c.project_id, jobs.c.estimated_tokens).where(jobs.c.id.in_(ids))
    found: Counter[str] = Counter()
    for row in database.read(lambda uow: uow.conn.execute(query).all()):
        found[row.project_id] += row.estimated_tokens
    return found


def ring_and_finish(database: Database, num_messages: int) -> Counter[str]:
    """Tokens by project of the next so many messages, each finished before the next is rung."""
    found: Counter[str] = Counter()
    for _ in range(num_messages):
        finish_oldest(database)
        found += given(database, ring(database))
    return found


def _insert(
    database: Database,
    num: int,
    prefix: str,
    *,
    project_id: str,
    priority: Priority,
    age_s: float,
    step_s: float,
    tokens: int,
    parent_id: str | None,
) -> None:
    """Rows numbered from 0 on, made by the database itself: a hundred thousand of them take a second."""
    number = sa.select(sa.literal(0).label("n")).cte("number", recursive=True)
    number = number.union_all(sa.select(number.c.n + 1).where(number.c.n < num - 1))
    six_digits = sa.func.substr(sa.cast(number.c.n + 1_000_000, sa.String), 2)

    def add(uow: UnitOfWork) -> None:
        run_after = sa.literal(uow.now - age_s, sa.Double) + number.c.n * sa.literal(step_s, sa.Double)
        row: dict[str, sa.ColumnElement[Any]] = {
            "id": sa.literal(prefix) + six_digits,
            "run_after": run_after,
            "created_at": run_after,
            **{name: sa.literal(value, jobs.c[name].type) for name, value in _ROW.items()},
            "project_id": sa.literal(project_id),
            "priority": sa.literal(priority.value),
            "estimated_tokens": sa.literal(tokens),
            "parent_id": sa.cast(sa.literal(parent_id), sa.String),
        }
        uow.conn.execute(sa.insert(jobs).from_select(list(row), sa.select(*row.values()), include_defaults=False))

    database.write(add)
