"""Windows: which waiting jobs are rung next, and the messages that are rung and not finished.

A window is the set of `messages` rows of a worker and class. Choosing happens at ring time, in SQL, so order holds
for a backlog of any size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ondol.contract.ids import new_id, shard_id
from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState, Priority
from ondol.sql.placement import MessageOut, MessageSize, Placed, Placement, ReadyWorker
from ondol.sql.records import RungMessage
from ondol.sql.sessions import INFER, TRAIN
from ondol.sql.tables import IS_RUNG, IS_WAITING, jobs, messages, sessions, versions

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork


_CHOOSERS_LOCK = 0x6F6E646F6C  # "ondol"
_MIN_LOOK, _MAX_LOOK = 128, 1024
_MAX_PAGES = 4
_LAST_SHARD = 999_999


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

        Jobs go in the order in which they might run, to workers that are warm for them (`ondol.sql.placement`); one
        that was handed back or taken back keeps its place.
        """
        chosen: list[RungMessage] = []
        workers = self._ready_workers()
        out = self._out(workers) if workers else []
        for priority in Priority if workers else ():
            num_out = Counter(message.worker for message, of_class in out if of_class == priority)
            room = {w.name: left for w in workers if (left := limits.of(priority) - num_out[w.name]) > 0}
            if room:
                placed = self._place(workers, out, room, priority, limits)
                chosen += [self._record(each, priority) for each in placed]
                out += [(MessageOut(p.worker, p.versions, p.line, self._uow.now), priority.value) for p in placed]
        return chosen + self._uow.training.choose(self._ready_trainers())

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

    def _ready_workers(self) -> list[ReadyWorker]:
        if not self._uow.is_sqlite:
            # One chooser at a time counts the windows. Not a lock on the sessions' rows: two processes whose groups of
            # work each renew a session and choose would wait for each other.
            self._conn.execute(sa.select(sa.func.pg_advisory_xact_lock(_CHOOSERS_LOCK)))
        columns = (sessions.c.worker, sessions.c.warm, sessions.c.memory_bytes)
        rows = self._conn.execute(self._ready(INFER, *columns))
        return [ReadyWorker(row.worker, frozenset(row.warm), row.memory_bytes) for row in rows]

    def _ready_trainers(self) -> list[str]:
        return [row.worker for row in self._conn.execute(self._ready(TRAIN, sessions.c.worker))]

    def _ready(self, role: str, *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
        return (
            sa.select(*columns)
            .where(
                sessions.c.ended_at.is_(None),
                sessions.c.is_ready,
                sessions.c.expires_at > self._uow.now,
                sessions.c.roles == role,
            )
            .order_by(sessions.c.worker)
        )

    def _out(self, workers: Sequence[ReadyWorker]) -> list[tuple[MessageOut, str]]:
        """The messages in the windows of the workers, each with its class."""
        query = sa.select(
            messages.c.worker, messages.c.priority, messages.c.versions, messages.c.parent_id, messages.c.rung_at
        ).where(messages.c.worker.in_([worker.name for worker in workers]))
        return [
            (MessageOut(row.worker, tuple(row.versions or ()), row.parent_id, row.rung_at), row.priority)
            for row in self._conn.execute(query)
        ]

    def _place(
        self,
        workers: Sequence[ReadyWorker],
        out: Sequence[tuple[MessageOut, str]],
        room: Mapping[str, int],
        priority: Priority,
        limits: WindowLimits,
    ) -> list[Placed]:
        """What goes to whom, of the head of the class's waiting jobs."""
        num_looked_at = min(max(_MIN_LOOK, limits.message_jobs * sum(room.values())), _MAX_LOOK)
        waiting = self._waiting(priority, num_looked_at)
        if not waiting:
            return []
        held: dict[str, set[str]] = {}
        for message, _ in out:
            held.setdefault(message.worker, set()).update(message.versions)
        placement = Placement(
            workers=workers,
            out=[message for message, of_class in out if of_class == priority],
            held=held,
            sizes=self._sizes(waiting) if any(worker.memory_bytes for worker in workers) else {},
            size=MessageSize(limits.message_jobs, limits.message_tokens),
            now=self._uow.now,
        )
        placed = placement.place(waiting, room)
        return placed if self._uow.is_sqlite else self._locked(placed)

    def _waiting(self, priority: Priority, limit: int) -> list[Any]:
        """The head of the class in the order of ringing, and behind each job with very many shards the next ones."""
        found: list[Any] = []
        query = waiting_query(priority, self._uow.now).limit(limit)
        for _ in range(_MAX_PAGES):
            page = self._conn.execute(query).all()
            found += page
            if len(page) < limit or page[-1].parent_id is None:
                break
            last = page[-1]
            behind = sa.tuple_(jobs.c.run_after, jobs.c.id) > sa.tuple_(
                sa.literal(last.run_after), sa.literal(shard_id(last.parent_id, _LAST_SHARD))
            )
            query = waiting_query(priority, self._uow.now).where(behind).limit(limit)
        return found

    def _sizes(self, waiting: Iterable[Any]) -> dict[str, int]:
        ids = {row.version_id for row in waiting if row.version_id is not None}
        query = sa.select(versions.c.id, versions.c.size_bytes).where(versions.c.id.in_(ids))
        return {row.id: row.size_bytes for row in self._conn.execute(query)} if ids else {}

    def _locked(self, placed: Sequence[Placed]) -> list[Placed]:
        """The same without jobs that somebody else is changing at this moment: they are rung in the next round."""
        ids = [job.id for each in placed for job in each.jobs]
        if not ids:
            return []
        query = sa.select(jobs.c.id).where(jobs.c.id.in_(ids), IS_WAITING).with_for_update(skip_locked=True)
        locked = {row.id for row in self._conn.execute(query)}
        kept = [Placed(each.worker, tuple(job for job in each.jobs if job.id in locked)) for each in placed]
        return [each for each in kept if each.jobs]

    def _record(self, placed: Placed, priority: Priority) -> RungMessage:
        message_id, rows = new_id("msg"), placed.jobs
        message = {
            "id": message_id,
            "worker": placed.worker,
            "priority": priority.value,
            "num_jobs": len(rows),
            "rung_at": self._uow.now,
            "versions": list(placed.versions),
            "parent_id": placed.line,
        }
        self._conn.execute(sa.insert(messages), [message])
        self._conn.execute(sa.update(jobs).where(jobs.c.id.in_([r.id for r in rows])).values(message_id=message_id))
        pairs = tuple((row.id, row.attempt) for row in rows)
        return RungMessage(message_id, placed.worker, priority, JobKind(rows[0].kind), pairs)


def waiting_query(priority: Priority, now: float) -> sa.Select[Any]:
    """Waiting jobs of a class that may run, in the order of ringing; the partial index answers its head."""
    return (
        sa.select(
            jobs.c.id,
            jobs.c.attempt,
            jobs.c.kind,
            jobs.c.estimated_tokens,
            jobs.c.is_alone,
            jobs.c.version_id,
            jobs.c.model_ref,
            jobs.c.parent_id,
            jobs.c.run_after,
        )
        .where(IS_WAITING, jobs.c.priority == priority, jobs.c.run_after <= now)
        .order_by(jobs.c.run_after, jobs.c.id)
    )
