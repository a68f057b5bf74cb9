"""Models that are loaded and pinned whenever a device process has come up (setting `MODELS`)."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import structlog

from ondol.contract.errors import OndolError
from ondol.contract.model_ref import ModelRef, parse_model_ref
from ondol.sql.database import Database
from workers.model_library import ModelLibrary

log = structlog.get_logger(__name__)


class Preloader:
    """Loads on a thread of its own; one that cannot be loaded is logged and does not hold up the others."""

    def __init__(self, database: Database, library: ModelLibrary, refs: Sequence[str]) -> None:
        self._database = database
        self._library = library
        self._refs = tuple(refs)
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="preloader", daemon=True)

    def device_up(self) -> None:
        """A device process has come up with an empty pool; returns at once."""
        self._wanted.set()

    def start(self) -> None:
        """Begin to load."""
        if self._refs:
            self._thread.start()

    def _loop(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            for text in self._refs:
                try:
                    self._load(parse_model_ref(text, param="MODELS"))
                except OndolError as exc:
                    log.warning("preload.failed", ref=text, reason=exc.message)

    def _load(self, ref: ModelRef) -> None:
        record = self._database.read(lambda uow: uow.models.resolve(ref, uow.keys.project_id() or ""))
        self._library.keep_warm(self._library.version(record.id))
        log.info("preload.pinned", ref=record.ref)
