"""This worker's session: its lease is renewed while the process lives, and everything stops writing before it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from ondol.contract.errors import DatabaseUnavailable
from ondol.sql.database import Database
from ondol.sql.sessions import INFER
from workers.vital_thread import vital_thread

log = structlog.get_logger(__name__)

STOP_WRITING_EARLY_S = 1.0


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Who the session is for."""

    worker: str
    device: str
    device_kind: str
    host: str
    pid: int
    role: str = INFER
    memory_bytes: int | None = None


class SessionKeeper:
    """Opens, renews and re-opens the session from a thread of its own.

    With `may_be_late` a session that could not be renewed in time is taken up again if nobody has ended it meanwhile:
    for a trainer, which stands still as long as `current()` is None.

    `current()` is the id under which work may be claimed and written now, or None. When the lease is lost, `on_lost`
    is called once; the process and its warm models stay, and a new session is opened when the database answers.

    While `has_device` says no there is no session: what it held and what was rung for it is handed back, and runs
    elsewhere.
    """

    def __init__(
        self,
        database: Database,
        identity: WorkerIdentity,
        *,
        lease_s: float,
        renew_s: float,
        is_ready: Callable[[], bool],
        warm: Callable[[], list[str]],
        on_lost: Callable[[], None],
        may_be_late: bool = False,
        has_device: Callable[[], bool] = lambda: True,
    ) -> None:
        self._has_device = has_device
        self._database = database
        self._identity = identity
        self._lease_s = lease_s
        self._renew_s = renew_s
        self._is_ready = is_ready
        self._warm = warm
        self._on_lost = on_lost
        self._may_be_late = may_be_late
        self._session_id: str | None = None
        self._valid_until = 0.0
        self._stopping = threading.Event()
        self._renew_now = threading.Event()
        self._thread = vital_thread("session-keeper", self._loop)

    def start(self) -> None:
        """Begin to open and renew."""
        self._thread.start()

    def current(self) -> str | None:
        """The session's id while its lease surely runs (by this machine's monotonic clock), else None."""
        session_id = self._session_id
        return session_id if session_id is not None and time.monotonic() < self._valid_until else None

    def renew_soon(self) -> None:
        """Renew at once: readiness or the warm models have changed."""
        self._renew_now.set()

    def end(self, *, reason: str) -> None:
        """Stop renewing and end the session; what it still holds is handed back."""
        self._stopping.set()
        self._renew_now.set()
        self._thread.join(timeout=10)
        session_id = self._session_id
        if session_id is not None:
            try:
                left = self._database.write(lambda uow: uow.sessions.stop(session_id, reason=reason))
            except DatabaseUnavailable as exc:
                log.warning("session.not_ended", reason=exc.message)
            else:
                log.info("session.ended", session_id=session_id, num_handed_back=len(left))

    def _loop(self) -> None:
        while not self._stopping.is_set():
            asked_at = time.monotonic()
            try:
                self._open_or_renew(asked_at)
            except DatabaseUnavailable as exc:
                log.warning("session.not_renewed", reason=exc.message)
            is_late = self._session_id is not None and time.monotonic() >= self._valid_until
            if is_late and not self._may_be_late:
                self._lose("not renewed in time")
            self._renew_now.wait(self._renew_s)
            self._renew_now.clear()

    def _open_or_renew(self, asked_at: float) -> None:
        if not self._has_device():
            self._stand_down()
            return
        if self._session_id is None:
            self._session_id = self._open()
            log.info("session.opened", session_id=self._session_id, worker=self._identity.worker)
        session_id = self._session_id
        is_ready, warm = self._is_ready(), self._warm()
        kept = self._database.write(
            lambda uow: uow.sessions.renew(
                session_id, lease_s=self._lease_s, is_ready=is_ready, warm=warm, may_be_late=self._may_be_late
            )
        )
        if kept:
            self._valid_until = asked_at + self._lease_s - STOP_WRITING_EARLY_S
        else:
            self._lose("ended by the reconciler")
            self._renew_now.set()

    def _stand_down(self) -> None:
        """The device is gone for good or for long: others run what this worker holds."""
        session_id = self._session_id
        if session_id is not None:
            self._lose("there is no device process")
            self._database.write(lambda uow: uow.sessions.stop(session_id, reason="device_down"))

    def _open(self) -> str:
        who = self._identity
        return self._database.write(
            lambda uow: uow.sessions.open(
                worker=who.worker,
                device=who.device,
                device_kind=who.device_kind,
                host=who.host,
                pid=who.pid,
                lease_s=self._lease_s,
                role=who.role,
                memory_bytes=who.memory_bytes,
            )
        )

    def _lose(self, reason: str) -> None:
        log.warning("session.lost", session_id=self._session_id, reason=reason)
        self._session_id = None
        self._on_lost()
