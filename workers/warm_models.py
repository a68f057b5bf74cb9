"""Which models the device process holds, as far as its replies have told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from ondol.contract.frames import Header
from workers.batcher import Batcher
from workers.rows import DeviceModel


class WarmModels:
    """Kept from `loaded` and `ran` replies; told to the batcher (layout, budget) and to the session (references)."""

    def __init__(self, batcher: Batcher, *, on_change: Callable[[], None]) -> None:
        self._batcher = batcher
        self._on_change = on_change
        self._refs: dict[str, str] = {}
        self._known: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()

    def refs(self) -> list[str]:
        """References of the models that are warm, `name:3`."""
        with self._lock:
            return sorted(set(self._refs.values()))

    def keys(self) -> frozenset[str]:
        """Keys (manifest digest and dtype) of the models that are warm."""
        with self._lock:
            return frozenset(self._refs)

    def used_bytes(self) -> int:
        """Measured size of all models that are warm."""
        with self._lock:
            return sum(self._sizes.get(key, 0) for key in self._refs)

    def loaded(self, header: Header, model: DeviceModel) -> None:
        """A `loaded` reply has come."""
        self._batcher.set_packed(model.key, is_packed=bool(header["is_packed"]))
        with self._lock:
            self._known[model.key] = model.ref
            self._sizes[model.key] = int(header.get("size_bytes") or 0)
            self._refs[model.key] = model.ref
            self._evict(header)
        self._on_change()

    def ran(self, header: Header) -> None:
        """A `ran` reply has come."""
        key = str(header["key"])
        if header.get("num_halvings"):
            self._batcher.set_budget(key, int(header["max_batch_tokens"]))
        with self._lock:
            is_new = key not in self._refs and key in self._known
            if is_new:
                self._refs[key] = self._known[key]
            self._evict(header)
        if is_new or header.get("evicted"):
            self._on_change()

    def unloaded(self, keys: Iterable[str]) -> None:
        """The device process has let these models go."""
        with self._lock:
            for key in keys:
                self._refs.pop(key, None)
        self._on_change()

    def clear(self) -> None:
        """The device process has ended: nothing is warm."""
        with self._lock:
            self._refs.clear()

    def _evict(self, header: Header) -> None:
        for key in header.get("evicted") or ():
            self._refs.pop(key, None)
