"""Worker sessions: rows with a lease by the database's clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from ondol.contract.ids import new_id
from ondol.sql.records import SessionRecord
from ondol.sql.tables import sessions

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork


INFER, TRAIN = "infer", "train"

_RUNS = sa.select(sessions.c.silent_since).where(
    sessions.c.id == sa.bindparam("b_session", type_=sa.String),
    sessions.c.ended_at.is_(None),
    sessions.c.expires_at > sa.bindparam("b_now", type_=sa.Double),
)
_HOLD = _RUNS.with_for_update(read=True)


class SessionRepository:
    """Opening, renewing, ending and lapsing sessions.

    Whoever ends a session locks its row before the jobs and messages that belong to it, as whoever claims does.
    """

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn

    def open(
        self,
        *,
        worker: str,
        device: str,
        device_kind: str,
        host: str,
        pid: int,
        lease_s: float,
        role: str = INFER,
        memory_bytes: int | None = None,
    ) -> str:
        """Open a session and answer its id. Sessions that this worker name had before end here, their jobs go back.

        `role`: what is rung for it, batches of rows (`INFER`) or fine-tunes (`TRAIN`). `memory_bytes`: what its warm
        models may take.
        """
        now = self._uow.now
        earlier = sa.select(sessions.c.id).where(sessions.c.worker == worker, sessions.c.ended_at.is_(None))
        for row in self._conn.execute(earlier.order_by(sessions.c.id).with_for_update()).all():
            self._uow.attempts.take_back(row.id)
            self.end(row.id, reason="superseded")
            self._uow.leaders.count_repairs("session_superseded", 1)
        session_id = new_id("ses")
        self._conn.execute(
            sa.insert(sessions),
            [
                {
                    "id": session_id,
                    "worker": worker,
                    "device": device,
                    "device_kind": device_kind,
                    "roles": role,
                    "host": host,
                    "pid": pid,
                    "is_ready": False,
                    "started_at": now,
                    "renewed_at": now,
                    "expires_at": now + lease_s,
                    "warm": [],
                    "memory_bytes": memory_bytes,
                }
            ],
        )
        return session_id

    def renew(
        self, session_id: str, *, lease_s: float, is_ready: bool, warm: Sequence[str], may_be_late: bool = False
    ) -> bool:
        """Extend the lease; False when the session has ended or lapsed: nothing may be written under it any more.

        `may_be_late`: a lease that ran out, but that nobody has ended, is taken up again. Only for whoever wrote
        nothing in between.
        """
        now = self._uow.now
        runs = sa.true() if may_be_late else sessions.c.expires_at > now
        statement = (
            sa.update(sessions)
            .where(sessions.c.id == session_id, sessions.c.ended_at.is_(None), runs)
            .values(
                renewed_at=now,
                expires_at=now + lease_s,
                is_ready=is_ready,
                warm=list(warm),
                clock_ahead_s=self._uow.clock.ahead_s,
            )
        )
        return self._conn.execute(statement).rowcount == 1

    def hold(self, session_id: str) -> bool:
        """Whether the lease runs; then nobody can end the session before this transaction has.

        For whoever claims: a worker that does so is silent no more.
        """
        query = _RUNS if self._uow.is_sqlite else _HOLD
        given = {"b_session": session_id, "b_now": self._uow.now}
        row = self._conn.execute(query, given).one_or_none()
        if row is not None and row.silent_since is not None:
            self._conn.execute(sa.update(sessions).where(sessions.c.id == session_id).values(silent_since=None))
        return row is not None

    def note_silence(self, worker: str) -> None:
        """Messages of the worker have lapsed: it is given what others have no room for, until it claims again.

        For `ringing.SILENT_FOR_S` at most; then it is asked like the others, and may fall silent anew.
        """
        self._conn.execute(
            sa.update(sessions)
            .where(sessions.c.worker == worker, sessions.c.ended_at.is_(None))
            .values(silent_since=self._uow.now)
        )

    def stop(self, session_id: str, *, reason: str) -> list[str]:
        """End the session of a worker that stops; the ids of jobs that it still held, which are queued again.

        Messages in its queues that nobody claimed are let go too: no other worker reads those queues.
        """
        mine = sa.select(sessions.c.worker).where(sessions.c.id == session_id).with_for_update()
        worker = self._conn.execute(mine).scalar_one()
        handed_back = self._uow.attempts.hand_back(self._uow.attempts.held_by(session_id))
        for job_id, attempt in self._uow.training.checks_held_by(session_id):
            self._uow.training.give_back_check(job_id, attempt)
        self._uow.training.release_devices(session_id)
        self._uow.ringing.recall_of(worker)
        self.end(session_id, reason=reason)
        return handed_back

    def end(self, session_id: str, *, reason: str) -> None:
        """End the session; its jobs must have been handed back or taken back."""
        self._conn.execute(
            sa.update(sessions)
            .where(sessions.c.id == session_id, sessions.c.ended_at.is_(None))
            .values(ended_at=self._uow.now, end_reason=reason, is_ready=False)
        )

    def lapse(self) -> list[tuple[str, str]]:
        """End all sessions whose lease ran out; (session id, worker) of each. Take their jobs back next."""
        statement = (
            sa.update(sessions)
            .where(sessions.c.ended_at.is_(None), sessions.c.expires_at <= self._uow.now)
            .values(ended_at=self._uow.now, end_reason="lapsed", is_ready=False)
            .returning(sessions.c.id, sessions.c.worker)
        )
        return [(row.id, row.worker) for row in self._conn.execute(statement)]

    def open_sessions(self) -> list[SessionRecord]:
        """All sessions whose lease runs."""
        query = (
            sa.select(sessions)
            .where(sessions.c.ended_at.is_(None), sessions.c.expires_at > self._uow.now)
            .order_by(sessions.c.worker)
        )
        return [_record(row) for row in self._conn.execute(query)]


def _record(row: Row[Any]) -> SessionRecord:
    return SessionRecord(
        id=row.id,
        worker=row.worker,
        device=row.device,
        device_kind=row.device_kind,
        is_ready=row.is_ready,
        warm=tuple(row.warm),
        expires_at=row.expires_at,
        role=row.roles,
        memory_bytes=row.memory_bytes,
        clock_ahead_s=row.clock_ahead_s,
    )
