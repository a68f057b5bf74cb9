"""The follower: when an alias moves from a version that is warm here, the new one is warmed and the old one let go.

Moves are read from the history of aliases, each second and at once after a wake-up. The new version is loaded and run
once before the old one is let go; that happens when no alias and no setting names it, nobody has asked for it for
`IDLE_S` and no row of it is open.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from ondol.broker.wake import ALIAS_CHANNEL, HintListener
from ondol.contract.errors import DatabaseUnavailable, OndolError
from ondol.sql.aliases import AliasMove
from ondol.sql.database import Database
from workers.in_flight import InFlight
from workers.model_library import ModelLibrary
from workers.preload import NO_ROOM, Preloader
from workers.vital_thread import vital_thread
from workers.warm_models import WarmModels

log = structlog.get_logger(__name__)

LOOK_S = 1.0
IDLE_S = 2.0
"""Longer than an api process believes an alias that it has read (0.5 s): calls for the old version still come then."""
_LATE_COMMIT_S = 60.0
"""A move is stamped before its commit; one that becomes visible this much later is still seen."""


@dataclass(slots=True)
class _Follow:
    """An alias that moved: its newest move, the versions that it left (references by manifest digest), their dtypes."""

    move: AliasMove
    left: dict[str, str] = field(default_factory=dict)
    dtypes: set[str] = field(default_factory=set)


class AliasFollower:
    """One thread looks and loads; a load that fails for good leaves the old version warm, any other is tried again."""

    def __init__(
        self,
        *,
        database: Database,
        redis_url: str,
        library: ModelLibrary,
        warm: WarmModels,
        in_flight: InFlight,
        preloader: Preloader,
    ) -> None:
        self._database = database
        self._library = library
        self._warm = warm
        self._in_flight = in_flight
        self._preloader = preloader
        self._listener = HintListener(redis_url, ALIAS_CHANNEL, self._on_hint)
        self._since: float | None = None
        self._seen: dict[str, float] = {}
        self._open: dict[tuple[str, str, str], _Follow] = {}
        self._leaving: dict[str, str] = {}
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        self._thread = vital_thread("alias-follower", self._loop)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()
        self._listener.start()

    def begin_to_stop(self) -> None:
        """Follow no more; returns at once."""
        self._stopping.set()
        self._wanted.set()
        self._listener.begin_to_stop()

    def stop(self) -> None:
        """Wait for the threads; a load that runs ends with the device process."""
        self.begin_to_stop()
        self._thread.join(timeout=5)
        self._listener.stop()

    def _on_hint(self, _ids: Sequence[str]) -> None:
        self._wanted.set()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look()
            except DatabaseUnavailable as exc:
                log.info("alias.not_looked", reason=exc.message)
            self._wanted.wait(LOOK_S)
            self._wanted.clear()

    def _look(self) -> None:
        for move in self._new_moves():
            follow = self._open.setdefault((move.project_id, move.model, move.alias), _Follow(move))
            follow.move = move
            if move.previous_digest is not None:
                follow.left[move.previous_digest] = f"{move.model}:{move.previous_number}"
        for key, follow in list(self._open.items()):
            if self._stopping.is_set():
                return
            if self._follow(follow):
                del self._open[key]
        for digest in list(self._leaving):
            self._let_go(digest)

    def _new_moves(self) -> list[AliasMove]:
        """Moves that were not seen before, oldest first."""
        since = self._since
        found = self._database.read(
            lambda uow: uow.models.alias_moves_since(since if since is not None else uow.now - _LATE_COMMIT_S)
        )
        new = [move for move in found if move.id not in self._seen]
        self._seen.update((move.id, move.created_at) for move in new)
        if self._seen:
            self._since = oldest = max(self._seen.values()) - _LATE_COMMIT_S
            self._seen = {move_id: at for move_id, at in self._seen.items() if at > oldest}
        return new

    def _follow(self, follow: _Follow) -> bool:
        """Warm what the alias points to now, if what it left is warm; whether that is done with."""
        move, warm = follow.move, self._warm.keys()
        left = {digest: ref for digest, ref in follow.left.items() if digest != move.manifest_digest}
        follow.dtypes.update(dtype for digest in left for dtype in self._library.wanted_dtypes(digest, warm))
        self._preloader.alias_moved(move.model, move.alias)
        is_done = True
        if move.version_id is not None and follow.dtypes:
            try:
                self._warm_up(move, move.version_id, follow.dtypes)
            except OndolError as exc:
                log.warning("alias.not_followed", ref=f"{move.model}:{move.number}", reason=str(exc)[:200])
                is_done = not exc.retryable
                if exc.code not in NO_ROOM:  # else the old one must make room
                    return is_done
        self._leaving.update((digest, ref) for digest, ref in left.items() if _keys_of(digest, warm))
        return is_done

    def _warm_up(self, move: AliasMove, version_id: str, dtypes: Iterable[str]) -> None:
        started_at = time.monotonic()
        version = self._library.version(version_id)
        for dtype in sorted(dtypes):
            self._library.warm_up(version, dtype)
        log.info(
            "alias.followed",
            alias=f"{move.model}@{move.alias}",
            ref=version.record.ref,
            previous=f"{move.model}:{move.previous_number}",
            load_s=round(time.monotonic() - started_at, 3),
        )

    def _let_go(self, digest: str) -> None:
        """Unload a version that an alias has left, unless somebody names or uses it."""
        if self._preloader.is_pinned(digest):
            return
        if self._library.idle_s(digest) < IDLE_S or self._in_flight.is_using(digest):
            return
        ref = self._leaving[digest]
        if not self._database.read(lambda uow: uow.models.is_aliased(digest)):
            keys = _keys_of(digest, self._warm.keys())
            try:
                self._library.unload(digest, keys)
            except OndolError as exc:
                log.info("alias.old_version_not_unloaded", ref=ref, reason=str(exc)[:200])
                return
            self._warm.unloaded(keys)
            self._preloader.look_again()
            log.info("alias.old_version_unloaded", ref=ref)
        del self._leaving[digest]


def _keys_of(digest: str, keys: Iterable[str]) -> set[str]:
    return {key for key in keys if key.startswith(f"{digest}:")}
