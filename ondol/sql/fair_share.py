"""Fair share: whose waiting jobs are looked at, and what each project was given (decision 17).

Every read is answered by the partial index of waiting rows, (class, project, `run_after`, id): its cost grows with
neither the backlog nor the number of projects that have nothing waiting.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ondol.contract.ids import shard_id
from ondol.contract.states import Priority
from ondol.sql.placement import Placed, Share, charge_of
from ondol.sql.tables import IS_WAITING, jobs, projects, shares

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork

AGE_S = 60.0
"""A project that has waited so long and was given nothing goes next, whatever its weight."""
MAX_PROJECTS = 64
"""Projects whose jobs are looked at in one round; those that were given least come first."""
_MIN_LOOK_EACH = 16
_MAX_PAGES = 4
_LAST_SHARD = 999_999
_COLUMNS = ("id", "attempt", "kind", "estimated_tokens", "is_alone", "version_id", "model_ref", "parent_id")
_SHOWN = (*_COLUMNS, "run_after", "project_id")


@dataclass(frozen=True, slots=True)
class Waiting:
    """The heads of a class in the order of ringing, and what each project was given, if there is more than one.

    `num_behind`: about how many more wait behind them; 0 only if there is none.
    """

    jobs: Sequence[Any]
    shares: Mapping[str, Share]
    num_behind: int = 0


class FairShare:
    """Reads what waits and keeps account of what was given; for one round of ringing, in its transaction."""

    def __init__(self, uow: UnitOfWork, *, message_tokens: int) -> None:
        self._uow = uow
        self._conn = uow.conn
        self._message_tokens = message_tokens

    def ends(self) -> dict[Priority, tuple[str, str]]:
        """For each class in which anything waits, the first and the last of its projects in the order of their ids."""
        row = self._conn.execute(_ENDS).one()
        found = zip(Priority, row[::2], row[1::2], strict=True)
        return {priority: (first, last) for priority, first, last in found if first is not None}

    def waiting(self, priority: Priority, ends: tuple[str, str], limit: int, *, count_up_to: int) -> Waiting:
        """About `limit` jobs that may run: the head of the one project's line, or as many of each project's.

        With what waits behind them, they are counted up to `count_up_to`.
        """
        first, last = ends
        of_class = {} if first == last else self._projects(priority)
        if first != last and not of_class:
            return Waiting((), {})
        if len(of_class) <= 1:
            found, shown = self._line(priority, next(iter(of_class), first), limit), {}
            has_more = len(found) >= limit
        else:
            each = max(_MIN_LOOK_EACH, limit // len(of_class))
            found, shown = self._heads(priority, list(of_class), each), of_class
            has_more = max(Counter(job.project_id for job in found).values(), default=0) >= each
        num = self._num_waiting(priority, count_up_to) if has_more and count_up_to > len(found) else 0
        num_behind = max(1, num - len(found)) if has_more else 0
        return Waiting(found, shown, num_behind)

    def charge(self, priority: Priority, given: Mapping[str, Share], placed: Iterable[Placed]) -> None:
        """Write down what the projects were given by these messages, if more than one waited."""
        if not given:
            return
        charges: Counter[str] = Counter()
        for each in placed:
            for job in each.jobs:
                charges[job.project_id] += charge_of(job)
        if not charges:
            return
        rows = [
            {
                "project_id": project_id,
                "priority": priority.value,
                "served": given[project_id].served + charge / given[project_id].weight,
                "rung_at": self._uow.now,
            }
            for project_id, charge in sorted(charges.items())
        ]
        self._conn.execute(_UPSERT_ON_SQLITE if self._uow.is_sqlite else _UPSERT_ON_POSTGRESQL, rows)

    def _projects(self, priority: Priority) -> dict[str, Share]:
        """Projects of which a job may run now, those that are to be served first, at most `MAX_PROJECTS`."""
        now = self._uow.now
        rows = self._conn.execute(_PROJECTS[priority], {"now": now}).all()
        # Without an account it was given nothing beside others yet, and goes first anyway.
        since = {row.id: now if row.rung_at is None else max(row.head_at, row.rung_at) for row in rows}
        floors = _floors({row.id: (row.weight, row.served) for row in rows}, self._message_tokens)
        found = {
            row.id: Share(
                weight=row.weight,
                served=max(floors[row.id], row.served) if row.served is not None else floors[row.id],
                waits_since=since[row.id] if now - since[row.id] >= AGE_S else None,
            )
            for row in rows
        }
        first = sorted(found, key=lambda project_id: (*found[project_id].turn, project_id))
        return {project_id: found[project_id] for project_id in first[:MAX_PROJECTS]}

    def _num_waiting(self, priority: Priority, limit: int) -> int:
        of_class = (IS_WAITING, jobs.c.priority == priority, jobs.c.run_after <= self._uow.now)
        in_order = jobs.c.project_id, jobs.c.run_after, jobs.c.id  # of the index, or PostgreSQL reads the whole table
        counted = sa.select(jobs.c.id).where(*of_class).order_by(*in_order).limit(limit).subquery()
        return int(self._conn.execute(sa.select(sa.func.count()).select_from(counted)).scalar_one())

    def _line(self, priority: Priority, project_id: str, limit: int) -> list[Any]:
        """The head of a project's line, and behind each job with very many shards the next ones."""
        query = waiting_query(priority, project_id, self._uow.now).limit(limit)
        found: list[Any] = list(self._conn.execute(query).all())
        return found + self._behind(priority, found, limit, pages=_MAX_PAGES - 1)

    def _behind(self, priority: Priority, page: Sequence[Any], limit: int, *, pages: int) -> list[Any]:
        found: list[Any] = []
        while pages > 0 and len(page) == limit and page[-1].parent_id is not None:
            last, pages = page[-1], pages - 1
            behind = sa.tuple_(jobs.c.run_after, jobs.c.id) > sa.tuple_(
                sa.literal(last.run_after), sa.literal(shard_id(last.parent_id, _LAST_SHARD))
            )
            query = waiting_query(priority, last.project_id, self._uow.now).where(behind).limit(limit)
            page = self._conn.execute(query).all()
            found += page
        return found

    def _heads(self, priority: Priority, ids: Sequence[str], each: int) -> list[Any]:
        """The heads of several projects' lines."""
        given = {"class": priority.value, "now": self._uow.now, "each": each}
        if self._uow.is_sqlite:
            rows = self._conn.execute(_HEADS_ON_SQLITE, given | {"ids": json.dumps(ids)}).all()
        else:
            rows = self._conn.execute(_HEADS_ON_POSTGRESQL, given | {"ids": list(ids)}).all()
        found: list[Any] = sorted(rows, key=lambda row: (row.project_id, row.run_after, row.id))
        pages = _MAX_PAGES - 1
        for _, line in groupby(list(found), key=lambda row: row.project_id):
            more = self._behind(priority, list(line), each, pages=min(pages, 1))
            pages -= bool(more)
            found += more
        return sorted(found, key=lambda row: (row.run_after, row.id))


def waiting_query(priority: Priority, project_id: str, now: float) -> sa.Select[Any]:
    """Waiting jobs of a class and project that may run, in the order of ringing; the index answers its head."""
    return (
        sa.select(*(jobs.c[name] for name in _SHOWN))
        .where(IS_WAITING, jobs.c.priority == priority, jobs.c.project_id == project_id, jobs.c.run_after <= now)
        .order_by(jobs.c.run_after, jobs.c.id)
    )


def _floors(known: Mapping[str, tuple[float, float | None]], message_tokens: int) -> dict[str, float]:
    """The least that each project counts as having been given: who was away is owed two messages, not its absence.

    Projects that wait all along are never further apart than this: a message of each, by weight.
    """
    served = [given - message_tokens / weight for weight, given in known.values() if given is not None]
    furthest = max(served, default=0.0)
    return {project_id: furthest - message_tokens / weight for project_id, (weight, _) in known.items()}


def _end(priority: Priority, *, is_last: bool) -> sa.ScalarSelect[Any]:
    order = jobs.c.project_id.desc() if is_last else jobs.c.project_id
    query = sa.select(jobs.c.project_id).where(IS_WAITING, jobs.c.priority == sa.literal_column(f"'{priority.value}'"))
    return query.order_by(order).limit(1).scalar_subquery()


def _projects_query(priority: Priority) -> sa.Select[Any]:
    """Projects with waiting jobs of the class, found by skipping from one to the next in the index."""
    of_class = sa.and_(IS_WAITING, jobs.c.priority == sa.literal_column(f"'{priority.value}'"))
    found = sa.select(_end(priority, is_last=False).label("id")).cte("found", recursive=True)
    following = (
        sa.select(jobs.c.project_id)
        .where(of_class, jobs.c.project_id > found.c.id)
        .order_by(jobs.c.project_id)
        .limit(1)
        .correlate(found)
        .scalar_subquery()
    )
    found = found.union_all(sa.select(following).where(found.c.id.is_not(None)))
    head_at = (
        sa.select(jobs.c.run_after)
        .where(of_class, jobs.c.project_id == found.c.id)
        .order_by(jobs.c.run_after)
        .limit(1)
        .correlate(found)
        .scalar_subquery()
    )
    heads = sa.select(found.c.id, head_at.label("head_at")).where(found.c.id.is_not(None)).subquery("heads")
    mine = sa.and_(shares.c.project_id == heads.c.id, shares.c.priority == priority.value)
    return (
        sa.select(heads.c.id, heads.c.head_at, projects.c.weight, shares.c.served, shares.c.rung_at)
        .select_from(heads.join(projects, projects.c.id == heads.c.id).outerjoin(shares, mine))
        .where(heads.c.head_at <= sa.bindparam("now", type_=sa.Double))
    )


def _head_of(project_id: sa.ColumnElement[Any], *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    return (
        sa.select(*columns)
        .where(
            IS_WAITING,
            jobs.c.priority == sa.bindparam("class", type_=sa.String),
            jobs.c.project_id == project_id,
            jobs.c.run_after <= sa.bindparam("now", type_=sa.Double),
        )
        .order_by(jobs.c.run_after, jobs.c.id)
        .limit(sa.bindparam("each", type_=sa.Integer))
    )


def _heads_on_sqlite() -> sa.Select[Any]:
    asked = sa.func.json_each(sa.bindparam("ids", type_=sa.String)).table_valued("value", name="asked")
    head = jobs.alias("head")
    of_one = _head_of(asked.c.value, jobs.c.id).correlate(asked)
    return sa.select(*(head.c[name] for name in _SHOWN)).select_from(asked.join(head, head.c.id.in_(of_one)))


def _heads_on_postgresql() -> sa.Select[Any]:
    ids = sa.bindparam("ids", type_=postgresql.ARRAY(sa.String))
    asked = sa.func.unnest(ids).table_valued("value", name="asked").render_derived()
    of_one = _head_of(asked.c.value, *(jobs.c[name] for name in _SHOWN)).correlate(asked).lateral("head")
    return sa.select(*(of_one.c[name] for name in _SHOWN)).select_from(asked.join(of_one, sa.true()))


def _upsert(insert: Any) -> Any:
    statement = insert(shares)
    new = {name: statement.excluded[name] for name in ("served", "rung_at")}
    return statement.on_conflict_do_update(index_elements=["project_id", "priority"], set_=new)


_ENDS = sa.select(*(_end(priority, is_last=is_last) for priority in Priority for is_last in (False, True)))
_PROJECTS = {priority: _projects_query(priority) for priority in Priority}
_HEADS_ON_SQLITE = _heads_on_sqlite()
_HEADS_ON_POSTGRESQL = _heads_on_postgresql()
_UPSERT_ON_SQLITE = _upsert(sqlite.insert)
_UPSERT_ON_POSTGRESQL = _upsert(postgresql.insert)
