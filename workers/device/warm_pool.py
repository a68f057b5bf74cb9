"""The warm pool: loaded models, bounded by measured bytes, least recently used out first, pinned ones never.

One thread uses it, so a model is never loaded twice at once. Knows nothing of torch.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from ondol.contract.errors import DeviceError

Model = TypeVar("Model")
_MIB = 1024 * 1024


@dataclass(slots=True)
class _Entry(Generic[Model]):
    model: Model
    size_bytes: int
    is_pinned: bool


class WarmPool(Generic[Model]):
    """Models by key; the sum of their bytes stays within `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: OrderedDict[str, _Entry[Model]] = OrderedDict()

    @property
    def used_bytes(self) -> int:
        """Bytes of all models in the pool."""
        return sum(entry.size_bytes for entry in self._entries.values())

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the models in the pool, least recently used first."""
        return tuple(self._entries)

    def use(self, key: str) -> Model | None:
        """The model, now the most recently used; None if it is not in the pool."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry.model

    def pin(self, key: str) -> None:
        """Never evict this model."""
        self._entries[key].is_pinned = True

    def make_room(self, size_bytes: int, *, ref: str) -> tuple[str, ...]:
        """Evict until a model of this size fits; the keys that went.

        DeviceError `model_too_large` if it cannot fit beside the pinned ones; then nothing was evicted.
        """
        pinned_bytes = sum(entry.size_bytes for entry in self._entries.values() if entry.is_pinned)
        if size_bytes + pinned_bytes > self._limit_bytes:
            raise DeviceError(
                f"{ref} needs {_mib(size_bytes)}; the device's pool has {_mib(self._limit_bytes)}, "
                f"of which pinned models hold {_mib(pinned_bytes)}",
                code="model_too_large",
            )
        evicted = []
        while self.used_bytes + size_bytes > self._limit_bytes:
            key = next(key for key, entry in self._entries.items() if not entry.is_pinned)
            del self._entries[key]
            evicted.append(key)
        return tuple(evicted)

    def add(self, key: str, model: Model, *, size_bytes: int, is_pinned: bool, ref: str) -> tuple[str, ...]:
        """Take a loaded model in by its measured size; the keys that had to go. Raises as `make_room` does."""
        evicted = self.make_room(size_bytes, ref=ref)
        self._entries[key] = _Entry(model, size_bytes, is_pinned)
        return evicted

    def grow(self, key: str, size_bytes: int, *, ref: str) -> tuple[str, ...]:
        """The model at `key` takes so many bytes from now on; the keys that had to go. Raises as `make_room` does."""
        entry = self._entries.pop(key)
        try:
            evicted = self.make_room(size_bytes, ref=ref)
        except DeviceError:
            self._entries[key] = entry
            raise
        self._entries[key] = _Entry(entry.model, size_bytes, entry.is_pinned)
        return evicted

    def evict_oldest(self) -> str | None:
        """Let the least recently used model go that is not pinned; its key, None if there is none."""
        key = next((key for key, entry in self._entries.items() if not entry.is_pinned), None)
        if key is not None:
            del self._entries[key]
        return key

    def remove(self, key: str) -> bool:
        """Let a model go, pinned or not; whether it was there."""
        return self._entries.pop(key, None) is not None


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.1f} MiB"
