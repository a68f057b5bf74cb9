"""Pins of version files in the local cache, held for as long as anybody on this worker names the files."""

from __future__ import annotations

import gc
import queue
import weakref

from models_store.cache import LocalCache


class FilePin:
    """Held by a served version and by every row and work made with it; the files stay while one of them lives."""

    __slots__ = ("__weakref__", "manifest_digest")

    def __init__(self, manifest_digest: str) -> None:
        self.manifest_digest = manifest_digest


class FilePins:
    """Hands out pins that were taken with `LocalCache.materialise(…, pin=True)`. Thread-safe."""

    def __init__(self, cache: LocalCache) -> None:
        self._cache = cache
        # A pin ends wherever its last reference does, which may be inside any lock: only noted there, taken back later.
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()

    def hold(self, manifest_digest: str) -> FilePin:
        """The pin of files that were just materialised."""
        pin = FilePin(manifest_digest)
        weakref.finalize(pin, self._ended.put, manifest_digest).atexit = False
        return pin

    def release_ended(self) -> None:
        """Take back the pins that nobody holds any more; for when files are about to be fetched or let go."""
        gc.collect()  # works and rows name each other, so that only the collector ends what they hold
        while True:
            try:
                digest = self._ended.get_nowait()
            except queue.Empty:
                return
            self._cache.unpin(digest)
