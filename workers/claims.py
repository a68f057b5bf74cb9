"""What this worker's handlers have claimed, and the audit that finds claims which no handler knows.

Such claims come from a commit whose answer was lost: the job is ours in SQL, but nobody here runs it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import structlog

from ondol.contract.errors import DatabaseUnavailable
from ondol.sql.database import Database
from ondol.sql.records import ClaimedJob
from workers.session import SessionKeeper

log = structlog.get_logger(__name__)

AUDIT_EVERY_S = 5.0


class Claims:
    """Thread-safe set of (job, attempt) pairs that handlers hold."""

    def __init__(self) -> None:
        self._held: set[tuple[str, int]] = set()
        self._lock = threading.Lock()

    def add(self, claimed: Iterable[ClaimedJob]) -> None:
        """A handler holds these now."""
        with self._lock:
            self._held.update((job.id, job.attempt) for job in claimed)

    def remove(self, claimed: Iterable[ClaimedJob]) -> None:
        """A handler is done with these."""
        with self._lock:
            self._held.difference_update((job.id, job.attempt) for job in claimed)

    def unknown(self, pairs: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
        """Those of the pairs that no handler holds."""
        with self._lock:
            return set(pairs) - self._held


class ClaimAudit:
    """Hands back what SQL says is ours and two looks in a row found without a handler."""

    def __init__(self, database: Database, session: SessionKeeper, claims: Claims) -> None:
        self._database = database
        self._session = session
        self._claims = claims
        self._suspects: set[tuple[str, int]] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="claim-audit", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        self._thread.join(timeout=5)

    def _loop(self) -> None:
        while not self._stopping.wait(AUDIT_EVERY_S):
            try:
                self._look()
            except DatabaseUnavailable as exc:
                log.debug("audit.skipped", reason=exc.message)

    def _look(self) -> None:
        session_id = self._session.current()
        if session_id is None:
            self._suspects = set()
            return
        unknown = self._claims.unknown(self._database.read(lambda uow: uow.attempts.held_by(session_id)))
        forgotten = unknown & self._suspects
        self._suspects = unknown
        if forgotten:
            log.warning("audit.handed_back", num_jobs=len(forgotten))
            self._database.write(lambda uow: uow.attempts.hand_back(sorted(forgotten)))
