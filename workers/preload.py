"""Models that are loaded and pinned whenever a device process has come up (setting `MODELS`), aliases as they move."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import structlog

from ondol.contract.errors import OndolError
from ondol.contract.model_ref import DEFAULT_ALIAS, ModelRef, parse_model_ref
from ondol.sql.database import Database
from workers.model_library import ModelLibrary
from workers.vital_thread import vital_thread

log = structlog.get_logger(__name__)

NO_ROOM = frozenset({"model_too_large", "out_of_device_memory", "storage_full"})
"""Codes of a load that what the alias pointed to before may stand in the way of, pinned or not."""
RETRY_S = 5.0
"""After a failure that passes, as of a store or a database that was away."""


class Preloader:
    """Loads on a thread of its own; one that cannot be loaded is logged and does not hold up the others.

    Where the reason passes it is tried again until it is loaded.
    """

    def __init__(self, database: Database, library: ModelLibrary, refs: Sequence[str]) -> None:
        self._database = database
        self._library = library
        self._refs = tuple(refs)
        self._num_lives = 0
        self._pinned: dict[str, tuple[str, int]] = {}
        library.is_pinned = self.is_pinned
        self._wanted = threading.Event()
        self._thread = vital_thread("preloader", self._loop)

    def device_up(self) -> None:
        """A device process has come up with an empty pool; returns at once."""
        self._num_lives += 1
        self._wanted.set()

    def alias_moved(self, model: str, alias: str) -> None:
        """Pin what the alias points to now, if the setting names it; returns at once."""
        if f"{model}@{alias}" in self._refs or (alias == DEFAULT_ALIAS and model in self._refs):
            self.look_again()

    def look_again(self) -> None:
        """Load and pin what the references stand for now and is not loaded; returns at once."""
        self._wanted.set()

    def is_pinned(self, manifest_digest: str) -> bool:
        """Whether a reference of the setting stands for these files, as far as they are loaded."""
        return any(digest == manifest_digest for digest, _ in list(self._pinned.values()))

    def start(self) -> None:
        """Begin to load."""
        if self._refs:
            self._thread.start()

    def _loop(self) -> None:
        retry_s: float | None = None
        while True:
            self._wanted.wait(retry_s)
            self._wanted.clear()
            outcomes = [self._is_tried_again(text) for text in self._refs]
            retry_s = RETRY_S if any(outcomes) else None

    def _is_tried_again(self, text: str) -> bool:
        """Load what the reference stands for; whether that failed for a reason that passes."""
        try:
            self._load(text, parse_model_ref(text, param="MODELS"))
        except OndolError as exc:
            log.warning("preload.failed", ref=text, reason=str(exc)[:200], is_tried_again=exc.retryable)
            return exc.retryable
        except Exception:  # the edge of one model: what it breaks here must not end the worker that serves others
            log.exception("preload.crashed", ref=text)
        return False

    def _load(self, text: str, ref: ModelRef) -> None:
        record = self._database.read(lambda uow: uow.models.resolve(ref, uow.keys.project_id() or ""))
        wanted = (record.manifest_digest, self._num_lives)
        if self._pinned.get(text) == wanted:
            return
        try:
            self._library.keep_warm(self._library.version(record.id))
        except OndolError as exc:
            if exc.code in NO_ROOM:
                self._pinned.pop(text, None)  # what the reference stood for before must make room
            raise
        self._pinned[text] = wanted
        log.info("preload.pinned", ref=record.ref)
