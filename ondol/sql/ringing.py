"""Windows: which waiting jobs are rung next, and the messages that are rung and not finished.

A window is the set of `messages` rows of a worker and class. Choosing happens at ring time, in SQL, so order holds
for a backlog of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from ondol.contract.ids import new_id
from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState, Priority
from ondol.sql.records import RungMessage
from ondol.sql.sessions import INFER, TRAIN
from ondol.sql.tables import IS_RUNG, IS_WAITING, jobs, messages, sessions

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork


_CHOOSERS_LOCK = 0x6F6E646F6C  # "ondol"


@dataclass(frozen=True, slots=True)
class WindowLimits:
    """How many messages a worker and class may have out, and how large each may be."""

    messages: int = 4
    bulk_messages: int = 2
    message_jobs: int = 64
    message_tokens: int = 16_384

    def of(self, priority: Priority) -> int:
        """Messages allowed for the class."""
        return self.bulk_messages if priority is Priority.BULK else self.messages


class RingRepository:
    """Choosing waiting jobs into messages, and forgetting messages that are finished or lost."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn

    def choose(self, limits: WindowLimits) -> list[RungMessage]:
        """Fill the windows of all ready workers with waiting jobs; publish what it answers after the commit.

        Jobs go in the order in which they might run; one that was handed back or taken back keeps its place.

        Workers take turns, one message each, so that a short backlog is spread over the devices.
        """
        chosen: list[RungMessage] = []
        workers = self._ready_workers(INFER)
        for priority in Priority if workers else ():
            room = self._room(workers, priority, limits)
            while room:
                progress = False
                for worker in sorted(room, key=lambda w: -room[w]):
                    message = self._choose_one(worker, priority, limits)
                    if message is None:
                        break
                    chosen.append(message)
                    progress = True
                    room[worker] -= 1
                if not progress:
                    break
                room = {worker: left for worker, left in room.items() if left > 0}
        return chosen + self._uow.training.choose(self._ready_workers(TRAIN))

    def finish(self, message_id: str) -> None:
        """Forget a message whose handler is done; what is still queued under it waits to be rung again."""
        self._release(messages.c.id == message_id)

    def claimed_by(self, session_id: str) -> list[str]:
        """Messages that the session has claimed and not finished."""
        query = sa.select(messages.c.id).where(messages.c.session_id == session_id)
        return [row.id for row in self._conn.execute(query)]

    def recall_of(self, worker: str) -> int:
        """Let go of all messages of a worker that stops. How many."""
        return self._release(messages.c.worker == worker)

    def recall_unclaimed(self, *, rung_before: float | None = None) -> int:
        """Let go of messages that nobody claimed: those rung before a time, or all. How many."""
        unclaimed: sa.ColumnElement[bool] = messages.c.claimed_at.is_(None)
        if rung_before is not None:
            unclaimed = sa.and_(unclaimed, messages.c.rung_at < rung_before)
        return self._release(unclaimed)

    def recall_orphans(self) -> int:
        """Let go of queued jobs whose message no longer exists, and of claimed messages of ended sessions."""
        ended = sa.select(sessions.c.id).where(sessions.c.ended_at.is_not(None))
        released = self._release(sa.and_(messages.c.claimed_at.is_not(None), messages.c.session_id.in_(ended)))
        known = sa.select(messages.c.id)
        statement = sa.update(jobs).where(IS_RUNG, jobs.c.message_id.not_in(known)).values(message_id=None)
        return released + self._conn.execute(statement).rowcount + self._uow.training.recall_orphans()

    def num_waiting(self) -> int:
        """Queued jobs that no message names, due or not."""
        query = sa.select(sa.func.count()).select_from(jobs).where(IS_WAITING)
        return int(self._conn.execute(query).scalar_one())

    def _release(self, condition: sa.ColumnElement[bool]) -> int:
        query = sa.select(messages.c.id).where(condition).order_by(messages.c.id)
        ids = [row.id for row in self._conn.execute(query if self._uow.is_sqlite else query.with_for_update())]
        if ids:
            self._conn.execute(
                sa.update(jobs)
                .where(jobs.c.message_id.in_(ids), jobs.c.state == JobState.QUEUED)
                .values(message_id=None)
            )
            self._uow.training.release_checks(ids)
            self._conn.execute(sa.delete(messages).where(messages.c.id.in_(ids)))
        return len(ids)

    def _ready_workers(self, role: str) -> list[str]:
        query = (
            sa.select(sessions.c.worker)
            .where(
                sessions.c.ended_at.is_(None),
                sessions.c.is_ready,
                sessions.c.expires_at > self._uow.now,
                sessions.c.roles == role,
            )
            .order_by(sessions.c.worker)
        )
        if not self._uow.is_sqlite:
            # One chooser at a time counts the windows. Not a lock on the sessions' rows: two processes whose groups of
            # work each renew a session and choose would wait for each other.
            self._conn.execute(sa.select(sa.func.pg_advisory_xact_lock(_CHOOSERS_LOCK)))
        return [row.worker for row in self._conn.execute(query)]

    def _room(self, workers: Sequence[str], priority: Priority, limits: WindowLimits) -> dict[str, int]:
        query = (
            sa.select(messages.c.worker, sa.func.count().label("num"))
            .where(messages.c.priority == priority, messages.c.worker.in_(workers))
            .group_by(messages.c.worker)
        )
        out = {row.worker: int(row.num) for row in self._conn.execute(query)}
        room = {worker: limits.of(priority) - out.get(worker, 0) for worker in workers}
        return {worker: left for worker, left in room.items() if left > 0}

    def _choose_one(self, worker: str, priority: Priority, limits: WindowLimits) -> RungMessage | None:
        query = (
            sa.select(jobs.c.id, jobs.c.attempt, jobs.c.kind, jobs.c.estimated_tokens, jobs.c.is_alone)
            .where(IS_WAITING, jobs.c.priority == priority, jobs.c.run_after <= self._uow.now)
            .order_by(jobs.c.run_after, jobs.c.id)
            .limit(limits.message_jobs)
        )
        if not self._uow.is_sqlite:
            query = query.with_for_update(skip_locked=True)
        waiting: Sequence[Any] = self._conn.execute(query).all()
        rows = _cut(waiting, limits.message_tokens)
        if not rows:
            return None
        message_id, ids = new_id("msg"), [row.id for row in rows]
        self._conn.execute(
            sa.insert(messages),
            [
                {
                    "id": message_id,
                    "worker": worker,
                    "priority": priority.value,
                    "num_jobs": len(ids),
                    "rung_at": self._uow.now,
                }
            ],
        )
        self._conn.execute(sa.update(jobs).where(jobs.c.id.in_(ids)).values(message_id=message_id))
        pairs = tuple((row.id, row.attempt) for row in rows)
        return RungMessage(message_id, worker, priority, JobKind(rows[0].kind), pairs)


def _cut(rows: Sequence[Row[Any]], max_tokens: int) -> list[Row[Any]]:
    """The head of `rows` that fits one message: one kind, within the tokens; a job that must be alone stays alone."""
    taken: list[Row[Any]] = []
    tokens = 0
    for row in rows:
        if taken and (row.kind != taken[0].kind or row.is_alone or tokens + row.estimated_tokens > max_tokens):
            break
        taken.append(row)
        tokens += row.estimated_tokens
        if row.is_alone or row.kind == JobKind.IMPORT:
            break
    return taken
