"""Values that may be a moment old: loaded once for all who ask at the same time, kept for a stated time."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class TimedCache(Generic[K, V]):
    """A cache in front of an async loader, for one event loop. What the loader raises is raised and never kept."""

    def __init__(self, load: Callable[[K], Awaitable[V]], *, max_age_s: float, max_entries: int = 4096) -> None:
        self._load = load
        self._max_age_s = max_age_s
        self._max_entries = max_entries
        self._kept: OrderedDict[K, tuple[float, V]] = OrderedDict()
        self._loading: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K) -> V:
        """The value, at most `max_age_s` old; concurrent callers share one load."""
        kept = self._kept.get(key)
        if kept is not None and time.monotonic() - kept[0] <= self._max_age_s:
            return kept[1]
        task = self._loading.get(key)
        if task is None:
            task = asyncio.create_task(self._fetch(key))
            self._loading[key] = task
            task.add_done_callback(retrieve)
        return await asyncio.shield(task)  # a caller that hangs up must not end the load of the others

    async def _fetch(self, key: K) -> V:
        asked_at = time.monotonic()
        try:
            value = await self._load(key)
        finally:
            self._loading.pop(key, None)
        self._kept[key] = (asked_at, value)
        self._kept.move_to_end(key)
        while len(self._kept) > self._max_entries:
            self._kept.popitem(last=False)
        return value


def retrieve(task: asyncio.Task[V]) -> None:
    """Look at a task's error, so that one which nobody waits for any more is not reported as forgotten."""
    if not task.cancelled():
        task.exception()  # marks it as seen: every caller may have hung up
