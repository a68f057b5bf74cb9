"""Synthetic rows: finished jobs by the hundred thousand, cloned in SQL from one job that was taken all the way."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from bench.simulated import Simulated
from ondol.sql.database import Database
from ondol.sql.tables import attempts, events, job_inputs, jobs, results
from ondol.sql.unit_of_work import UnitOfWork

ID_PREFIX = "job_0synthetic"
"""Ids of 11 digits follow; they sort before all ids of today."""
CHUNK = 50_000
_CLONED: Sequence[tuple[sa.Table, str]] = (
    (jobs, "id"),
    (job_inputs, "job_id"),
    (attempts, "job_id"),
    (events, "job_id"),
    (results, "job_id"),
)


def fill_up_to(database: Database, simulated: Simulated, num: int) -> None:
    """Have `num` finished synthetic jobs, each with input, attempt, events and result as its original has them."""
    have = database.read(_count)
    if have >= num:
        return
    template = simulated.run_one()
    for first in range(have, num, CHUNK):
        last = min(first + CHUNK, num) - 1
        database.write(lambda uow, first=first, last=last: _clone(uow, template, first, last))  # type: ignore[misc]
    if not database.is_sqlite:  # what PostgreSQL's own autovacuum would do in its time; SQLite never does it by itself
        database.write(lambda uow: uow.conn.execute(sa.text("ANALYZE")))


def _count(uow: UnitOfWork) -> int:
    query = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.id.startswith(ID_PREFIX))
    return int(uow.conn.execute(query).scalar_one())


def _clone(uow: UnitOfWork, template: str, first: int, last: int) -> None:
    numbers = sa.select(sa.literal(first).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(sa.select(numbers.c.n + 1).where(numbers.c.n < last))
    digits = sa.func.substr(sa.literal("00000000000").concat(sa.cast(numbers.c.n, sa.String)), -11)
    if not uow.is_sqlite:
        digits = sa.func.right(sa.literal("00000000000").concat(sa.cast(numbers.c.n, sa.String)), 11)
    new_id = sa.literal(ID_PREFIX).concat(digits)
    for table, key in _CLONED:
        columns = [new_id if column.name == key else column for column in table.c]
        both = sa.join(table, numbers, sa.true())
        original = sa.select(*columns).select_from(both).where(table.c[key] == template)
        uow.conn.execute(sa.insert(table).from_select([column.name for column in table.c], original))
