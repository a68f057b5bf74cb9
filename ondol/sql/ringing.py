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

from ondol.contract.ids import new_id
from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState, Priority
from ondol.sql.fair_share import FairShare, Waiting
from ondol.sql.id_lists import id_list, is_listed
from ondol.sql.placement import MessageOut, MessageSize, Placed, Placement, ReadyWorker, even_jobs
from ondol.sql.records import RungMessage
from ondol.sql.sessions import INFER, TRAIN
from ondol.sql.tables import IS_RUNG, IS_UNFINISHED_TRAINING, IS_WAITING, jobs, messages, sessions, versions

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork


_CHOOSERS_LOCK = 0x6F6E646F6C  # "ondol"
_MIN_LOOK, _MAX_LOOK = 128, 1024
SILENT_FOR_S = 30.0
"""So long a worker counts as silent after its last lapse: while others have room it is given nothing that it could
claim to show that it hears."""
_MAX_LOOKS = 8
"""How often a round goes on to what is behind, as long as all that it looks at finds a place."""

# Built once: SQLAlchemy takes longer to build a statement than the database to run it.
_MESSAGE = sa.bindparam("b_message", type_=sa.String)
_FORGET = sa.delete(messages).where(messages.c.id == _MESSAGE)
_UNBIND = (
    sa.update(jobs)
    .where(
        jobs.c.message_id == _MESSAGE,
        sa.or_(
            jobs.c.state == JobState.QUEUED,
            sa.and_(jobs.c.state == JobState.VALIDATING_FILES, jobs.c.session_id.is_(None)),
        ),
    )
    .values(message_id=None)
)
_READY = (
    sa.select(sessions.c.worker, sessions.c.warm, sessions.c.memory_bytes, sessions.c.silent_since)
    .where(
        sessions.c.ended_at.is_(None),
        sessions.c.is_ready,
        sessions.c.expires_at > sa.bindparam("b_now", type_=sa.Double),
        sessions.c.roles == sa.bindparam("b_role", type_=sa.String),
    )
    .order_by(sessions.c.worker)
)
_OUT = sa.select(
    messages.c.worker,
    messages.c.priority,
    messages.c.versions,
    messages.c.parent_id,
    messages.c.rung_at,
    messages.c.project_id,
    messages.c.claimed_at.is_not(None).label("is_claimed"),
).where(is_listed(messages.c.worker, "b_workers"))
_LOCK = sa.select(jobs.c.id).where(is_listed(jobs.c.id, "b_ids"), IS_WAITING).with_for_update(skip_locked=True)
_RING = sa.insert(messages)
_BIND = sa.update(jobs).where(is_listed(jobs.c.id, "b_ids")).values(message_id=_MESSAGE)


@dataclass(frozen=True, slots=True)
class WindowLimits:
    """How many messages a worker and class may have out, and how large each may be."""

    messages: int = 4
    bulk_messages: int = 2
    message_jobs: int = 256
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
        has_room = any(_room(workers, out, priority, limits) for priority in Priority)
        share = FairShare(self._uow, message_tokens=limits.message_tokens)
        for priority, ends in share.ends().items() if has_room else ():
            even = None
            for _ in range(_MAX_LOOKS):
                if not (room := _room(workers, out, priority, limits)):
                    break
                look = min(max(_MIN_LOOK, limits.message_jobs * sum(room.values())), _MAX_LOOK)
                # More than that is not counted: it does not make the messages larger.
                waiting = share.waiting(priority, ends, look, count_up_to=limits.message_jobs * len(room))
                even = even or even_jobs(len(waiting.jobs) + waiting.num_behind, len(room))
                placed = self._place(workers, out, room, priority, limits, waiting, even)
                share.charge(priority, waiting.shares, placed)
                chosen += [self._record(each, priority) for each in placed]
                out += [(self._out_now(each), priority.value) for each in placed]
                if not waiting.num_behind or sum(len(each.jobs) for each in placed) < len(waiting.jobs):
                    break
        return chosen + self._uow.training.choose(self._ready_trainers())

    def finish(self, message_id: str) -> None:
        """Forget a message whose handler is done; what is still queued under it waits to be rung again."""
        given = {"b_message": message_id}
        if self._conn.execute(_FORGET, given).rowcount:
            self._conn.execute(_UNBIND, given)

    def claimed_by(self, session_id: str) -> list[str]:
        """Messages that the session has claimed and not finished."""
        query = sa.select(messages.c.id).where(messages.c.session_id == session_id)
        return [row.id for row in self._conn.execute(query)]

    def recall_of(self, worker: str) -> int:
        """Let go of all messages of a worker that stops. How many."""
        return self._release(messages.c.worker == worker)

    def recall_unclaimed(self, *, rung_before: float | None = None, worker: str | None = None) -> int:
        """Let go of messages that nobody claimed: those rung before a time or all, of one worker or all. How many.

        By those rung before a time their workers are known as silent; all of them are lost when Redis has lost them.
        """
        if rung_before is not None:
            self._note_silence(_unclaimed(rung_before, worker))
        return self._release(_unclaimed(rung_before, worker))

    def num_unclaimed_of(self, worker: str, *, rung_before: float) -> int:
        """Messages rung for the worker before a time, and not claimed."""
        query = sa.select(sa.func.count()).select_from(messages).where(_unclaimed(rung_before, worker))
        return int(self._conn.execute(query).scalar_one())

    def oldest_waiting_s(self, role: str = INFER) -> float:
        """How long the oldest job that may run, and that no message names, has waited since it might; 0 for none."""
        is_waiting = IS_WAITING
        if role == TRAIN:
            is_waiting = sa.and_(IS_UNFINISHED_TRAINING, jobs.c.message_id.is_(None), jobs.c.session_id.is_(None))
        query = sa.select(sa.func.min(jobs.c.run_after)).where(is_waiting, jobs.c.run_after <= self._uow.now)
        since = self._conn.execute(query).scalar_one()
        return 0.0 if since is None else max(0.0, self._uow.now - since)

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

    def _note_silence(self, condition: sa.ColumnElement[bool]) -> None:
        others = messages.alias()
        has_claimed = sa.exists().where(others.c.worker == messages.c.worker, others.c.claimed_at >= messages.c.rung_at)
        query = sa.select(messages.c.worker).where(condition, ~has_claimed).distinct().order_by(messages.c.worker)
        for worker in self._conn.execute(query).scalars().all():
            self._uow.sessions.note_silence(worker)

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
        rows = self._conn.execute(_READY, {"b_role": INFER, "b_now": self._uow.now})
        heard_before = self._uow.now - SILENT_FOR_S
        return [
            ReadyWorker(row.worker, frozenset(row.warm), row.memory_bytes, (row.silent_since or 0) > heard_before)
            for row in rows
        ]

    def _ready_trainers(self) -> list[str]:
        return [row.worker for row in self._conn.execute(_READY, {"b_role": TRAIN, "b_now": self._uow.now})]

    def _out(self, workers: Sequence[ReadyWorker]) -> list[tuple[MessageOut, str]]:
        """The messages in the windows of the workers, each with its class."""
        names = id_list(self._conn, [worker.name for worker in workers])
        return [
            (
                MessageOut(
                    row.worker,
                    tuple(row.versions or ()),
                    row.parent_id,
                    row.rung_at,
                    row.project_id,
                    bool(row.is_claimed),
                ),
                row.priority,
            )
            for row in self._conn.execute(_OUT, {"b_workers": names})
        ]

    def _out_now(self, placed: Placed) -> MessageOut:
        return MessageOut(placed.worker, placed.versions, placed.line, self._uow.now, placed.project)

    def _place(
        self,
        workers: Sequence[ReadyWorker],
        out: Sequence[tuple[MessageOut, str]],
        room: Mapping[str, int],
        priority: Priority,
        limits: WindowLimits,
        waiting: Waiting,
        even: int,
    ) -> list[Placed]:
        """What goes to whom, of the heads of the class's waiting jobs."""
        if not waiting.jobs:
            return []
        held: dict[str, set[str]] = {}
        for message, _ in out:
            held.setdefault(message.worker, set()).update(message.versions)
        placement = Placement(
            workers=workers,
            out=[message for message, of_class in out if of_class == priority],
            held=held,
            sizes=self._sizes(waiting.jobs) if any(worker.memory_bytes for worker in workers) else {},
            size=MessageSize(limits.message_jobs, limits.message_tokens),
            now=self._uow.now,
            even_jobs=even,
            shares=waiting.shares,
        )
        placed = placement.place(waiting.jobs, room)
        return placed if self._uow.is_sqlite else self._locked(placed)

    def _sizes(self, waiting: Iterable[Any]) -> dict[str, int]:
        ids = {row.version_id for row in waiting if row.version_id is not None}
        query = sa.select(versions.c.id, versions.c.size_bytes).where(versions.c.id.in_(ids))
        return {row.id: row.size_bytes for row in self._conn.execute(query)} if ids else {}

    def _locked(self, placed: Sequence[Placed]) -> list[Placed]:
        """The same without jobs that somebody else is changing at this moment: they are rung in the next round."""
        ids = [job.id for each in placed for job in each.jobs]
        if not ids:
            return []
        locked = set(self._conn.execute(_LOCK, {"b_ids": id_list(self._conn, ids)}).scalars())
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
            "project_id": placed.project,
        }
        self._conn.execute(_RING, [message])
        self._conn.execute(_BIND, {"b_ids": id_list(self._conn, [row.id for row in rows]), "b_message": message_id})
        pairs = tuple((row.id, row.attempt) for row in rows)
        return RungMessage(message_id, placed.worker, priority, JobKind(rows[0].kind), pairs)


def _room(
    workers: Sequence[ReadyWorker], out: Sequence[tuple[MessageOut, str]], priority: Priority, limits: WindowLimits
) -> dict[str, int]:
    """How many more messages of the class each worker may have, those that may have any."""
    num_out = Counter(message.worker for message, of_class in out if of_class == priority)
    return {w.name: left for w in workers if (left := limits.of(priority) - num_out[w.name]) > 0}


def _unclaimed(rung_before: float | None, worker: str | None) -> sa.ColumnElement[bool]:
    conditions: list[sa.ColumnElement[bool]] = [messages.c.claimed_at.is_(None)]
    if rung_before is not None:
        conditions.append(messages.c.rung_at < rung_before)
    if worker is not None:
        conditions.append(messages.c.worker == worker)
    return sa.and_(*conditions)
