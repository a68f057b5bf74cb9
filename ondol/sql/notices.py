"""Notices: what is to be told outside about the end of a job, once, however often it has to be tried.

A notice is written in the transaction that ends the job, so it is as durable as the end itself. Whoever delivers claims
due notices for a while; what a dead deliverer had claimed comes due again. Every try is fenced by its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from ondol.contract.errors import NotFound
from ondol.contract.ids import new_id
from ondol.contract.states import JobState
from ondol.sql.tables import events, jobs, notices

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork

_IS_WAITING = notices.c.status == sa.literal_column("'waiting'", sa.String)
_MAX_ANSWER = 512
WANTS_NOTICE = (jobs.c.webhook, jobs.c.task_id, jobs.c.ignores_result)
"""The columns of a job that say who is to be told of its end."""


class Channel(StrEnum):
    """By which way somebody is told."""

    WEBHOOK = "webhook"
    """A signed POST to the job's URL."""
    CELERY = "celery"
    """The result under the producer's task id, in the Celery result backend."""


class NoticeStatus(StrEnum):
    """Where a notice stands."""

    WAITING = "waiting"
    ACCEPTED = "accepted"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class DueNotice:
    """A notice that this process may try now; `num_tries` counts this try and fences what is written about it."""

    id: str
    job_id: str
    project_id: str
    seq: int
    num_tries: int
    state: JobState
    """How the job ended when the notice was written: a retried job may be in another state by now."""
    created_at: float
    webhook: str | None
    task_id: str | None


@dataclass(frozen=True, slots=True)
class NoticeRecord:
    """A notice as the outside sees it."""

    id: str
    job_id: str
    seq: int
    channel: Channel
    status: NoticeStatus
    num_tries: int
    next_try_at: float
    last_try_at: float | None
    last_answer: str | None
    created_at: float
    accepted_at: float | None


class NoticeRepository:
    """Writing, claiming and closing notices."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn
        self.num_added = 0
        """Notices that were written in this unit of work."""

    def add_for(self, ended: Sequence[tuple[str, int]], known: Sequence[Any] | None = None) -> None:
        """Notices of the jobs (id, seq of the event of their end) that somebody wants to be told of.

        `known`: rows of these jobs with `id` and `WANTS_NOTICE`, where the statement that ended them has given them.
        """
        if known is None:
            query = sa.select(jobs.c.id, *WANTS_NOTICE).where(
                jobs.c.id.in_([job_id for job_id, _ in ended]),
                sa.or_(jobs.c.webhook.is_not(None), jobs.c.task_id.is_not(None)),
            )
            known = list(self._conn.execute(query))
        seqs = dict(ended)
        rows = []
        for job in known:
            task_id = None if job.ignores_result else job.task_id
            wanted = ((Channel.WEBHOOK, job.webhook), (Channel.CELERY, task_id))
            rows += [self._new(job.id, seqs[job.id], channel) for channel, target in wanted if target is not None]
        if rows:
            self._conn.execute(sa.insert(notices), rows)
            self.num_added += len(rows)

    def claim(self, channel: Channel, *, for_s: float, limit: int = 50) -> list[DueNotice]:
        """Take due notices for `for_s` seconds; one that is not closed by then comes due again."""
        now = self._uow.now
        due = sa.select(notices.c.id).where(_IS_WAITING, notices.c.channel == channel, notices.c.next_try_at <= now)
        due = due.order_by(notices.c.next_try_at).limit(limit)
        if not self._uow.is_sqlite:
            due = due.with_for_update(skip_locked=True)
        ids = [row.id for row in self._conn.execute(due)]
        if not ids:
            return []
        claimed = (
            sa.update(notices)
            .where(notices.c.id.in_(ids), _IS_WAITING)
            .values(next_try_at=now + for_s, last_try_at=now, num_tries=notices.c.num_tries + 1)
        )
        self._conn.execute(claimed)
        query = (
            sa.select(notices, jobs.c.project_id, jobs.c.webhook, jobs.c.task_id, events.c.data)
            .join(jobs, jobs.c.id == notices.c.job_id)
            .join(events, sa.and_(events.c.job_id == notices.c.job_id, events.c.seq == notices.c.seq))
            .where(notices.c.id.in_(ids))
            .order_by(notices.c.created_at, notices.c.id)
        )
        return [_due(row) for row in self._conn.execute(query)]

    def accept(self, notice: DueNotice, answer: str) -> bool:
        """The other side has taken the notice; False when this try was overtaken by a later one."""
        return self._close(notice, answer, status=NoticeStatus.ACCEPTED, accepted_at=self._uow.now)

    def put_off(self, notice: DueNotice, answer: str, *, for_s: float) -> bool:
        """The try failed: another comes due in `for_s` seconds."""
        return self._close(notice, answer, next_try_at=self._uow.now + for_s)

    def give_up(self, notice: DueNotice, answer: str) -> bool:
        """Nobody is told any more, unless the notice is asked for again."""
        return self._close(notice, answer, status=NoticeStatus.GIVEN_UP)

    def hand_back(self, notice: DueNotice, *, for_s: float) -> bool:
        """The notice was claimed and not tried: it comes due in `for_s` seconds, and the claim counts as no try."""
        statement = self._mine(notice).values(next_try_at=self._uow.now + for_s, num_tries=notice.num_tries - 1)
        return self._conn.execute(statement).rowcount == 1

    def hand_back_all(self, pauses: Sequence[tuple[DueNotice, float]]) -> None:
        """Hand back notices, each for its time; those that were overtaken are passed over."""
        if not pauses:
            return
        statement = sa.update(notices).where(
            notices.c.id == sa.bindparam("notice"), notices.c.num_tries == sa.bindparam("tries"), _IS_WAITING
        )
        statement = statement.values(next_try_at=sa.bindparam("due_at"), num_tries=notices.c.num_tries - 1)
        now = self._uow.now
        rows = [{"notice": each.id, "tries": each.num_tries, "due_at": now + for_s} for each, for_s in pauses]
        self._conn.execute(statement, rows)

    def send_again(self, notice_id: str, job_id: str) -> NoticeRecord:
        """Make a notice due now, also one that was accepted or given up; NotFound if the job has no such notice.

        One whose event was purged cannot be told any more, and is not found either.
        """
        # The job's row first, as whoever purges its events does: one of the two sees the other.
        self._conn.execute(sa.select(jobs.c.id).where(jobs.c.id == job_id).with_for_update())
        has_event = sa.exists().where(events.c.job_id == notices.c.job_id, events.c.seq == notices.c.seq)
        statement = (
            sa.update(notices)
            .where(notices.c.id == notice_id, notices.c.job_id == job_id, has_event)
            .values(status=NoticeStatus.WAITING, next_try_at=self._uow.now, created_at=self._uow.now)
        )
        if self._conn.execute(statement).rowcount == 0:
            raise NotFound(f"job {job_id} has no notice {notice_id[:80]!r}, or its event was deleted", param="id")
        return next(notice for notice in self.of(job_id) if notice.id == notice_id)

    def of(self, job_id: str) -> list[NoticeRecord]:
        """The job's notices, oldest end first."""
        query = sa.select(notices).where(notices.c.job_id == job_id).order_by(notices.c.seq, notices.c.channel)
        return [_record(row) for row in self._conn.execute(query)]

    def next_due_in(self, channel: Channel) -> float | None:
        """Seconds until the next notice of the channel comes due (0: one is due); None when none waits."""
        query = sa.select(sa.func.min(notices.c.next_try_at)).where(_IS_WAITING, notices.c.channel == channel)
        earliest = self._conn.execute(query).scalar()
        return None if earliest is None else max(0.0, earliest - self._uow.now)

    def _new(self, job_id: str, seq: int, channel: Channel) -> dict[str, Any]:
        now = self._uow.now
        return {
            "job_id": job_id,
            "seq": seq,
            "channel": channel.value,
            "id": new_id("ntc"),
            "status": NoticeStatus.WAITING.value,
            "num_tries": 0,
            "next_try_at": now,
            "created_at": now,
        }

    def _close(self, notice: DueNotice, answer: str, **values: Any) -> bool:
        statement = self._mine(notice).values(last_answer=answer[:_MAX_ANSWER], **values)
        return self._conn.execute(statement).rowcount == 1

    def _mine(self, notice: DueNotice) -> sa.Update:
        return sa.update(notices).where(notices.c.id == notice.id, notices.c.num_tries == notice.num_tries, _IS_WAITING)


def _due(row: Row[Any]) -> DueNotice:
    return DueNotice(
        id=row.id,
        job_id=row.job_id,
        project_id=row.project_id,
        seq=row.seq,
        num_tries=row.num_tries,
        state=JobState(row.data["to"]),
        created_at=row.created_at,
        webhook=row.webhook,
        task_id=row.task_id,
    )


def _record(row: Row[Any]) -> NoticeRecord:
    return NoticeRecord(
        id=row.id,
        job_id=row.job_id,
        seq=row.seq,
        channel=Channel(row.channel),
        status=NoticeStatus(row.status),
        num_tries=row.num_tries,
        next_try_at=row.next_try_at,
        last_try_at=row.last_try_at,
        last_answer=row.last_answer,
        created_at=row.created_at,
        accepted_at=row.accepted_at,
    )
