"""The plans of the statements by which jobs are rung, claimed and completed, as the database explains them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection

from bench.simulated import LIMITS, Simulated, add_jobs
from ondol.sql.unit_of_work import UnitOfWork

_GROWING = "(jobs|attempts|events|results|job_inputs)"
_SCANS = re.compile(rf"\bSCAN {_GROWING}\b|Seq Scan on {_GROWING}\b")
_BY_INDEX = re.compile(r"USING (COVERING )?INDEX")


@dataclass(frozen=True, slots=True)
class Plan:
    """One statement of a step with its plan. `scans` names tables that are read from end to end."""

    step: str
    statement: str
    lines: tuple[str, ...]

    @property
    def scans(self) -> tuple[str, ...]:
        """Lines of the plan that read a whole table."""
        return tuple(line.strip() for line in self.lines if _SCANS.search(line) and not _BY_INDEX.search(line))

    def as_text(self) -> str:
        """The statement and its plan."""
        return "\n".join([f"[{self.step}] {self.statement}", *(f"    {line}" for line in self.lines)])


def explain(worker: Simulated) -> list[Plan]:
    """Plans of all statements of one ring, claim and completion, in a transaction that is rolled back."""
    add_jobs(worker.database, LIMITS.message_jobs)
    engine = sa.create_engine(worker.database.url)
    plans: list[Plan] = []
    with engine.connect() as conn:
        uow = UnitOfWork(conn, is_sqlite=worker.database.is_sqlite)
        with _explained(conn, "ring", plans):
            message = next(one for one in uow.ringing.choose(LIMITS) if one.worker == worker.name)
        with _explained(conn, "claim", plans):
            claimed = uow.attempts.claim(message.id, session_id=worker.session_id, worker=worker.name)
        with _explained(conn, "complete", plans):
            worker.record(uow, message.id, claimed)
        conn.rollback()
    engine.dispose()
    while worker.run_message():  # what was queued for this goes its way
        pass
    return plans


@contextmanager
def _explained(conn: Connection, step: str, plans: list[Plan]) -> Iterator[None]:
    """Explain each statement before it runs."""
    prefix = "EXPLAIN QUERY PLAN " if conn.dialect.name == "sqlite" else "EXPLAIN "

    def before(_conn: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, is_many: bool) -> None:
        if not statement.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE")):
            return
        first = parameters[0] if is_many else parameters
        rows = _fetch(conn.connection.cursor, prefix + statement, first)
        plans.append(Plan(step, " ".join(statement.split()), tuple(str(row[-1]) for row in rows)))

    event.listen(conn, "before_cursor_execute", before)
    try:
        yield
    finally:
        event.remove(conn, "before_cursor_execute", before)


def _fetch(make_cursor: Callable[[], Any], statement: str, parameters: Any) -> list[Any]:
    cursor = make_cursor()
    try:
        cursor.execute(statement, parameters)
        found: list[Any] = cursor.fetchall()
        return found
    finally:
        cursor.close()
