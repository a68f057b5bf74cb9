"""Which worker answers a call: the least loaded of those warm for the version; and where a hot version goes besides.

A version that is warm nowhere goes to one worker until it is warm there. One whose calls wait for long at the workers
that hold it is loaded by one more, which a copy of a call asks for; nobody waits for that copy.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from api.database import AsyncDatabase
from api.timed_cache import TimedCache
from ondol.contract.errors import DatabaseUnavailable, NotReady
from ondol.sql.records import SessionRecord, VersionRecord
from ondol.sql.sessions import INFER

SESSIONS_MAX_AGE_S = 0.5
RETRY_AFTER_S = 2.0
SLOW_WAIT_S = 0.4
"""A call that waited longer for a worker that is warm for it was slow."""
HOT_CALLS, HOT_WITHIN_S = 3, 2.0
"""So many slow calls within so long make a version hot."""
LOADING_LIMIT_S = 60.0
"""How long a worker is believed to be loading a version before another is asked."""
_MAX_VERSIONS = 256


@dataclass(frozen=True, slots=True)
class _Loading:
    session_id: str
    until: float


class WorkerChooser:
    """Chooses by open sessions at most half a second old, in one event loop. `device`: a device's name, or `auto`."""

    def __init__(
        self,
        database: AsyncDatabase,
        *,
        device: str,
        in_flight: Callable[[str], int],
        clock: Callable[[], float] = time.monotonic,
        sessions_max_age_s: float = SESSIONS_MAX_AGE_S,
    ) -> None:
        self._database = database
        self._device = device
        self._in_flight = in_flight
        self._clock = clock
        self._sessions: TimedCache[str, list[SessionRecord]] = TimedCache(self._load, max_age_s=sessions_max_age_s)
        self._loading: dict[str, _Loading] = {}
        self._slow: dict[str, deque[float]] = {}

    async def choose(self, version: VersionRecord, *, gone: Collection[str] = ()) -> SessionRecord:
        """The worker's session, none of those `gone`; NotReady when none is ready."""
        ready = [session for session in await self._ready() if session.id not in gone]
        if not ready:
            raise NotReady("no worker is ready to answer calls; see `ondol doctor`", retry_after_s=RETRY_AFTER_S)
        warm = [session for session in ready if _is_warm(session, version)]
        if warm:
            return self._least_loaded(warm)
        loading = self._loads(version)
        found = next((session for session in ready if loading is not None and session.id == loading.session_id), None)
        return found or self._begin_to_load(version, ready)

    async def is_open(self, session: SessionRecord) -> bool:
        """Whether the session's lease still runs; believed while the database does not answer."""
        try:
            sessions = await self._sessions.get("open")
        except DatabaseUnavailable:
            return True
        return any(open_one.id == session.id for open_one in sessions)

    async def place_for_copy(
        self, version: VersionRecord, chosen: SessionRecord, waited_s: float
    ) -> SessionRecord | None:
        """A call has waited so long at the worker chosen for it: who is to load the version too, if it is hot now.

        None while another worker loads it already, and when all have it. The caller sends a copy of the call there.
        """
        if waited_s < SLOW_WAIT_S or not _is_warm(chosen, version) or not self._is_hot(version):
            return None
        try:
            ready = await self._ready()
        except DatabaseUnavailable:
            return None
        cold = [session for session in ready if not _is_warm(session, version) and _holds(session, version)]
        loading = self._loads(version)
        if not cold or (loading is not None and any(session.id == loading.session_id for session in cold)):
            return None
        self._slow.pop(version.id, None)
        return self._begin_to_load(version, cold)

    def _is_hot(self, version: VersionRecord) -> bool:
        """Count one slow call; whether enough of them came lately."""
        now = self._clock()
        if len(self._slow) >= _MAX_VERSIONS and version.id not in self._slow:
            self._slow.clear()
        slow = self._slow.setdefault(version.id, deque(maxlen=HOT_CALLS))
        slow.append(now)
        return len(slow) == HOT_CALLS and now - slow[0] <= HOT_WITHIN_S

    def _loads(self, version: VersionRecord) -> _Loading | None:
        loading = self._loading.get(version.id)
        return loading if loading is not None and self._clock() < loading.until else None

    def _begin_to_load(self, version: VersionRecord, sessions: Collection[SessionRecord]) -> SessionRecord:
        now = self._clock()
        if len(self._loading) >= _MAX_VERSIONS:
            self._loading = {key: each for key, each in self._loading.items() if now < each.until}
        fitting = [session for session in sessions if _holds(session, version)]
        largest = max((session.memory_bytes or 0) for session in sessions)  # its own error names the sizes
        able = fitting or [session for session in sessions if session.memory_bytes == largest]
        session = min(able, key=lambda s: (self._in_flight(s.worker), len(s.warm), s.worker))
        self._loading[version.id] = _Loading(session.id, now + LOADING_LIMIT_S)
        return session

    def _least_loaded(self, sessions: Iterable[SessionRecord]) -> SessionRecord:
        return min(sessions, key=lambda session: (self._in_flight(session.worker), session.worker))

    async def _ready(self) -> list[SessionRecord]:
        return [
            session
            for session in await self._sessions.get("open")
            if session.is_ready and session.role == INFER and self._device in ("auto", session.device)
        ]

    async def _load(self, _key: str) -> list[SessionRecord]:
        return await self._database.read(lambda uow: uow.sessions.open_sessions())


def _is_warm(session: SessionRecord, version: VersionRecord) -> bool:
    return version.ref in session.warm or version.manifest_digest in session.warm


def _holds(session: SessionRecord, version: VersionRecord) -> bool:
    """Whether the device has room for the version's files, as far as that is known."""
    return session.memory_bytes is None or version.size_bytes <= session.memory_bytes
