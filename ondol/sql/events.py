"""Events, keyed (job, seq): seq comes from the job row in the statement that moves the job, so there are no gaps."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from ondol.contract.ids import parent_of
from ondol.contract.states import TERMINAL, JobState, Reason
from ondol.sql.many_rows import ManyRows
from ondol.sql.records import EventRecord, JsonObject
from ondol.sql.tables import events, jobs

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork


_INSERT = ManyRows(events, events.c.keys())


class EventRepository:
    """Appending and reading events."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn

    def add_states(
        self,
        jobs_and_seqs: Sequence[tuple[str, int]],
        *,
        after: JobState,
        reason: Reason,
        before: JobState | None = None,
        attempt: int | Sequence[int] | None = None,
        worker: str | None = None,
        ends: Sequence[Row[Any]] | None = None,
    ) -> None:
        """One state event a job, and whatever its end is due; `attempt` is one number for all or one a job.

        Comes last when jobs end: what belongs to the end (result, error, attempt) is written already. `ends`: rows with
        `notices.WANTS_NOTICE`, if they are at hand.
        """
        if not jobs_and_seqs:
            return
        numbers = attempt if isinstance(attempt, Sequence) else [attempt] * len(jobs_and_seqs)
        move = {"from": before, "to": after, "reason": reason}
        data = {number: {**move, "attempt": number, "worker": worker} for number in set(numbers)}
        self.insert(
            {"job_id": job_id, "seq": seq, "created_at": self._uow.now, "type": "state", "data": data[number]}
            for (job_id, seq), number in zip(jobs_and_seqs, numbers, strict=True)
        )
        if after in TERMINAL:
            self._end(jobs_and_seqs, after, ends)

    def _end(self, ended: Sequence[tuple[str, int]], state: JobState, rows: Sequence[Row[Any]] | None) -> None:
        """Every end passes here: that of a job is told outside, that of a shard is settled with its job."""
        shards = [job_id for job_id, _ in ended if parent_of(job_id) is not None]
        if len(shards) < len(ended):
            self._uow.notices.add_for(ended, rows)
        if shards and state is not JobState.CANCELLED:  # those are cancelled with their job alone
            self._uow.shards.settle(shards)

    def insert(self, rows: Iterable[JsonObject]) -> None:
        """Write rows of `events`, whose numbers the job's row has given already."""
        _INSERT.execute(self._conn, list(rows))

    def append(self, job_id: str, *, attempt: int, type: str, data: dict[str, Any]) -> int | None:
        """Append an event of the attempt that runs, or checks files; its seq, or None when the attempt is stale."""
        statement = (
            sa.update(jobs)
            .where(
                jobs.c.id == job_id,
                jobs.c.attempt == attempt,
                jobs.c.state.in_((JobState.RUNNING, JobState.VALIDATING_FILES)),
            )
            .values(event_seq=jobs.c.event_seq + 1)
            .returning(jobs.c.event_seq)
        )
        seq = self._conn.execute(statement).scalar()
        if seq is None:
            return None
        row = {"job_id": job_id, "seq": seq, "created_at": self._uow.now, "type": type, "data": data}
        self._conn.execute(sa.insert(events), [row])
        return int(seq)

    def after(self, job_id: str, seq: int, *, limit: int = 500) -> list[EventRecord]:
        """The job's events behind `seq`, in order."""
        query = (
            sa.select(events).where(events.c.job_id == job_id, events.c.seq > seq).order_by(events.c.seq).limit(limit)
        )
        return [_record(row) for row in self._conn.execute(query)]

    def newest(
        self, job_id: str, *, types: Collection[str], before: int | None = None, limit: int = 20
    ) -> list[EventRecord]:
        """The job's events of these types, newest first, those in front of `before` alone."""
        query = sa.select(events).where(events.c.job_id == job_id, events.c.type.in_(types))
        if before is not None:
            query = query.where(events.c.seq < before)
        return [_record(row) for row in self._conn.execute(query.order_by(events.c.seq.desc()).limit(limit))]

    def training_loss_at(self, job_id: str, step: int) -> float | None:
        """The loss that was reported last up to `step` of a fine-tune; None before the first report."""
        loss = events.c.data["loss"].as_float()
        query = (
            sa.select(loss)
            .where(
                events.c.job_id == job_id,
                events.c.type == "metrics",
                events.c.data["phase"].as_string() == "train",
                events.c.data["step"].as_integer() <= step,
            )
            .order_by(events.c.seq.desc())
            .limit(1)
        )
        found = self._conn.execute(query).scalar()
        return None if found is None else float(found)


def _record(row: Row[Any]) -> EventRecord:
    return EventRecord(row.job_id, row.seq, row.created_at, row.type, row.data)
