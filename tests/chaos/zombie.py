"""A worker that freezes with jobs in its hands, and wakes in the middle of its writes when others own them.

A frozen process notices its lost lease almost always before it writes; that it stops in the very moment between its
look at the lease and its transaction is what the fence is for. This holder goes through that moment on purpose, with
the repositories that every worker writes by.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from ondol.contract.errors import DatabaseUnavailable
from ondol.contract.states import TERMINAL, JobState
from ondol.sql.database import Database
from ondol.sql.records import ClaimedJob, Completion, Failure
from ondol.sql.tables import jobs, messages, sessions
from ondol.sql.unit_of_work import UnitOfWork
from tests.chaos.history import History
from tests.chaos.oracle import DIMS

RING_LIMIT_S = 4.0
OVERTAKEN_LIMIT_S = 30.0
_POLL_S = 0.05


@dataclass(slots=True)
class Refused:
    """How many writes of a holder without lease were refused, and which were not."""

    num: int = 0
    accepted: list[str] = field(default_factory=list)


class Zombie(threading.Thread):
    """One such life, from its session to its last write."""

    def __init__(self, number: int, url: str, model_ref: str, lease_s: float, history: History) -> None:
        super().__init__(name=f"zombie{number}", daemon=True)
        self._worker = f"zombie{number}@chaos"
        self._url = url
        self._model_ref = model_ref
        self._lease_s = lease_s
        self._history = history
        self.refused = Refused()

    def run(self) -> None:
        """Never raises for a database that is away: then there is no such life."""
        database = Database(self._url)
        try:
            session_id, claimed, unclaimed = self._claim(database)
            overtaken = self._wait_until_overtaken(database, session_id, claimed)
            self._write(database, session_id, overtaken, unclaimed)
            pairs = [(job.id, job.attempt) for job in overtaken]
            accepted, num = self.refused.accepted, self.refused.num
            self._history.note("zombie", worker=self._worker, held=pairs, refused=num, accepted=accepted)
        except DatabaseUnavailable as exc:
            self._history.note("zombie_without_database", worker=self._worker, reason=exc.message)
        finally:
            database.close()

    def _claim(self, database: Database) -> tuple[str, list[ClaimedJob], list[str]]:
        """A session that is rung for, the jobs claimed under it, and messages that it has not claimed."""
        session_id = database.write(
            lambda uow: uow.sessions.open(
                worker=self._worker, device="cpu:9", device_kind="cpu", host="chaos", pid=1, lease_s=self._lease_s
            )
        )
        warm = [self._model_ref]
        database.write(lambda uow: uow.sessions.renew(session_id, lease_s=self._lease_s, is_ready=True, warm=warm))
        claimed: list[ClaimedJob] = []
        unclaimed: list[str] = []
        until = time.monotonic() + min(RING_LIMIT_S, 0.7 * self._lease_s)
        while True:
            for message_id in database.read(lambda uow: [str(row.id) for row in uow.conn.execute(self._rung())]):
                if claimed:
                    unclaimed.append(message_id)
                    break
                claimed += database.write(
                    lambda uow, m=message_id: uow.attempts.claim(m, session_id=session_id, worker=self._worker)  # type: ignore[misc]  # bound at definition
                )
            if unclaimed or time.monotonic() >= until:
                return session_id, claimed, unclaimed
            time.sleep(_POLL_S)

    def _rung(self) -> sa.Select[tuple[str]]:
        return sa.select(messages.c.id).where(messages.c.worker == self._worker, messages.c.claimed_at.is_(None))

    def _wait_until_overtaken(self, database: Database, session_id: str, claimed: list[ClaimedJob]) -> list[ClaimedJob]:
        """The jobs that have another attempt or have ended; waits for all of them, and until the lease is over."""
        until = time.monotonic() + OVERTAKEN_LIMIT_S
        while not database.read(lambda uow: _is_over(uow, session_id)) and time.monotonic() < until:
            time.sleep(_POLL_S)
        while True:
            over = database.read(lambda uow: _overtaken(uow, claimed))
            if len(over) == len(claimed) or time.monotonic() >= until:
                return [job for job in claimed if job.id in over]
            time.sleep(_POLL_S)

    def _write(self, database: Database, session_id: str, claimed: list[ClaimedJob], unclaimed: list[str]) -> None:
        renewed = database.write(lambda uow: uow.sessions.renew(session_id, lease_s=1.0, is_ready=True, warm=[]))
        self._count("renew its session", ["renewed"] if renewed else [])
        for message_id in unclaimed:
            taken = database.write(
                lambda uow, m=message_id: uow.attempts.claim(m, session_id=session_id, worker=self._worker)  # type: ignore[misc]  # bound at definition
            )
            self._count("claim", [job.id for job in taken])
        for job in claimed:
            wrong = Completion(
                job.id,
                job.attempt,
                {"kind": "embedding", "shape": [job.num_inputs, DIMS], "num_tokens": 1, "encoding": "float"},
                "0" * 64,
                4 * DIMS * job.num_inputs,
                tokens=1,
                timings={},
                data=np.zeros((job.num_inputs, DIMS), dtype="<f4").tobytes(),
            )
            failed = Failure(job.id, job.attempt, {"code": "zombie", "message": "too late", "param": None})
            pair = (job.id, job.attempt)
            self._count("complete", self._complete(database, wrong))
            self._count("fail", database.write(lambda uow, f=failed: uow.attempts.fail([f], max_retries=5)))  # type: ignore[misc]  # bound at definition
            self._count("hand back", database.write(lambda uow, p=pair: uow.attempts.hand_back([p])))  # type: ignore[misc]  # bound at definition

    def _complete(self, database: Database, wrong: Completion) -> list[str]:
        try:
            return database.write(lambda uow: uow.attempts.complete([wrong]))
        except IntegrityError:  # there is a result already: refused, if only by the table
            return []

    def _count(self, what: str, done: list[str]) -> None:
        if done:
            self.refused.accepted += [f"{what} {one}" for one in done]
        else:
            self.refused.num += 1


def _is_over(uow: UnitOfWork, session_id: str) -> bool:
    """Whether the session's lease has run out, by the database's clock."""
    expires_at = uow.conn.execute(sa.select(sessions.c.expires_at).where(sessions.c.id == session_id)).scalar_one()
    return bool(expires_at <= uow.now)


def _overtaken(uow: UnitOfWork, claimed: list[ClaimedJob]) -> set[str]:
    """Ids of the jobs and shards that have ended or are at another attempt."""
    query = sa.select(jobs.c.id, jobs.c.attempt, jobs.c.state).where(jobs.c.id.in_([job.id for job in claimed]))
    held = {job.id: job.attempt for job in claimed}
    return {row.id for row in uow.conn.execute(query) if JobState(row.state) in TERMINAL or row.attempt > held[row.id]}
