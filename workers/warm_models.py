"""Which models the device process holds, as far as its replies have told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from ondol.contract.frames import Header
from workers.batcher import Batcher
from workers.rows import DeviceModel


class WarmModels:
    """Kept from `loaded` and `ran` replies; told to the batcher (layout, budget) and to the session (references)."""

    def __init__(
        self,
        batcher: Batcher,
        *,
        on_change: Callable[[], None],
        on_switched: Callable[[str, Header], None] = lambda _key, _switched: None,
    ) -> None:
        """`on_switched` gets the key of a model that went over to another engine, and what its reply says of that."""
        self._batcher = batcher
        self._on_change = on_change
        self._on_switched = on_switched
        self._told: dict[str, tuple[bool, int]] = {}
        """Layout and token budget by key, as the batcher knows them."""
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
        self._tell(model.key, header)
        with self._lock:
            self._known[model.key] = model.ref
            self._sizes[model.key] = int(header.get("size_bytes") or 0)
            self._refs[model.key] = model.ref
            self._evict(header)
        self._on_change()

    def ran(self, header: Header) -> None:
        """A `ran` reply has come."""
        key = str(header["key"])
        self._tell(key, header)
        switched: Header | None = header.get("switched")
        with self._lock:
            if switched is not None:
                self._sizes[key] = int(switched["size_bytes"])
            is_new = key not in self._refs and key in self._known
            if is_new:
                self._refs[key] = self._known[key]
            self._evict(header)
        if is_new or header.get("evicted"):
            self._on_change()
        if switched is not None:
            self._on_switched(key, switched)

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

    def _tell(self, key: str, header: Header) -> None:
        """Have the batcher cut batches as the device process wants them from now on; both change while it lives."""
        budget = header.get("max_batch_tokens")
        wanted = (bool(header.get("is_packed", True)), int(budget) if budget is not None else 0)
        if self._told.get(key) == wanted:
            return
        self._told[key] = wanted
        self._batcher.set_packed(key, is_packed=wanted[0])
        if wanted[1]:
            self._batcher.set_budget(key, wanted[1])

    def _evict(self, header: Header) -> None:
        for key in header.get("evicted") or ():
            self._refs.pop(key, None)
