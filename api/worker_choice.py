"""Which worker answers a call: a ready one that is warm for the version, then the least loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection

from api.database import AsyncDatabase
from api.timed_cache import TimedCache
from ondol.contract.errors import DatabaseUnavailable, NotReady
from ondol.sql.records import SessionRecord, VersionRecord
from ondol.sql.sessions import INFER

SESSIONS_MAX_AGE_S = 0.5
RETRY_AFTER_S = 2.0


class WorkerChooser:
    """Chooses by open sessions at most half a second old. `device`: one device's name, or `auto`."""

    def __init__(self, database: AsyncDatabase, *, device: str, in_flight: Callable[[str], int]) -> None:
        self._database = database
        self._device = device
        self._in_flight = in_flight
        self._sessions: TimedCache[str, list[SessionRecord]] = TimedCache(self._load, max_age_s=SESSIONS_MAX_AGE_S)

    async def choose(self, version: VersionRecord, *, gone: Collection[str] = ()) -> SessionRecord:
        """The worker's session, none of those `gone`; NotReady when none is ready."""
        sessions = await self._sessions.get("open")
        ready = [
            s
            for s in sessions
            if s.is_ready and s.role == INFER and s.id not in gone and self._device in ("auto", s.device)
        ]
        if not ready:
            raise NotReady("no worker is ready to answer calls; see `ondol doctor`", retry_after_s=RETRY_AFTER_S)
        return min(ready, key=lambda s: (not _is_warm(s, version), self._in_flight(s.worker), s.worker))

    async def is_open(self, session: SessionRecord) -> bool:
        """Whether the session's lease still runs; believed while the database does not answer."""
        try:
            sessions = await self._sessions.get("open")
        except DatabaseUnavailable:
            return True
        return any(open_one.id == session.id for open_one in sessions)

    async def _load(self, _key: str) -> list[SessionRecord]:
        return await self._database.read(lambda uow: uow.sessions.open_sessions())


def _is_warm(session: SessionRecord, version: VersionRecord) -> bool:
    return version.ref in session.warm or version.manifest_digest in session.warm
