"""What this worker's handlers have claimed, and the audit that finds claims which no handler knows.

Such claims come from a commit whose answer was lost: the job is ours in SQL, but nobody here runs it. A message without
a handler would fill a place in the window for as long as the session lives.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence

import structlog

from ondol.contract.errors import DatabaseUnavailable
from ondol.sql.database import Database
from ondol.sql.records import ClaimedJob, ClaimedTraining
from ondol.sql.unit_of_work import UnitOfWork
from workers.session import SessionKeeper
from workers.vital_thread import vital_thread

log = structlog.get_logger(__name__)

AUDIT_EVERY_S = 5.0


class Claims:
    """Thread-safe register of the messages and (job, attempt) pairs that handlers hold."""

    def __init__(self) -> None:
        self._messages: Counter[str] = Counter()
        self._held: set[tuple[str, int]] = set()
        self._lock = threading.Lock()

    def begin(self, message_id: str) -> None:
        """A handler has the message now."""
        with self._lock:
            self._messages[message_id] += 1

    def add(self, claimed: Iterable[ClaimedJob | ClaimedTraining]) -> None:
        """A handler holds these jobs now."""
        with self._lock:
            self._held.update((job.id, job.attempt) for job in claimed)

    def end(self, message_id: str, claimed: Iterable[ClaimedJob | ClaimedTraining]) -> bool:
        """A handler is done with the message and these jobs; whether no other handler has that message."""
        with self._lock:
            self._messages[message_id] -= 1
            if self._messages[message_id] <= 0:
                del self._messages[message_id]
            self._held.difference_update((job.id, job.attempt) for job in claimed)
            return message_id not in self._messages

    @property
    def is_empty(self) -> bool:
        """Whether no handler has a message."""
        return not self._messages

    @property
    def num_messages(self) -> int:
        """Messages that handlers have now."""
        with self._lock:
            return sum(self._messages.values())

    def unknown(self, pairs: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
        """Those of the pairs that no handler holds."""
        with self._lock:
            return set(pairs) - self._held

    def unknown_messages(self, ids: Iterable[str]) -> set[str]:
        """Those of the messages that no handler has."""
        with self._lock:
            return set(ids) - self._messages.keys()


class ClaimAudit:
    """Hands back what SQL says is ours and two looks in a row found without a handler."""

    def __init__(
        self, database: Database, session: SessionKeeper, claims: Claims, *, every_s: float = AUDIT_EVERY_S
    ) -> None:
        self._database = database
        self._session = session
        self._claims = claims
        self._every_s = every_s
        self._jobs: set[tuple[str, int]] = set()
        self._messages: set[str] = set()
        self._stopping = threading.Event()
        self._thread = vital_thread("claim-audit", self._loop)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        self._thread.join(timeout=5)

    def _loop(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self.look()
            except DatabaseUnavailable as exc:
                log.debug("audit.skipped", reason=exc.message)

    def look(self) -> None:
        """One look; what the look before this one found unknown too is handed back. DatabaseUnavailable."""
        session_id = self._session.current()
        if session_id is None:
            self._jobs, self._messages = set(), set()
            return
        held, claimed = self._database.read(
            lambda uow: (
                uow.attempts.held_by(session_id) + uow.training.checks_held_by(session_id),
                uow.ringing.claimed_by(session_id),
            )
        )
        jobs, messages = self._claims.unknown(held), self._claims.unknown_messages(claimed)
        lost_jobs, lost_messages = sorted(jobs & self._jobs), sorted(messages & self._messages)
        self._jobs, self._messages = jobs, messages
        if lost_jobs or lost_messages:
            log.warning("audit.handed_back", num_jobs=len(lost_jobs), num_messages=len(lost_messages))
            self._database.write(lambda uow: _give_up(uow, lost_jobs, lost_messages))


def _give_up(uow: UnitOfWork, held: Sequence[tuple[str, int]], message_ids: Sequence[str]) -> None:
    uow.attempts.hand_back(held)
    for job_id, attempt in held:
        uow.training.give_back_check(job_id, attempt)
    for message_id in message_ids:
        uow.ringing.finish(message_id)
