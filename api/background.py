"""Work beside the requests, by name: what runs already under a name is not begun a second time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial

AT_ONCE = 2
"""Tasks that run at a time: each holds a shard's result, and a page of batches may begin a hundred."""


class Background:
    """Tasks of one process's event loop, a few at a time. They answer for their own errors."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(AT_ONCE)

    def begin(self, name: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Begin as soon as there is room, unless a task of that name runs or waits."""
        if name not in self._running:
            task = asyncio.create_task(self._run(work), name=name)
            self._running[name] = task
            task.add_done_callback(partial(self._forget, name))

    async def stop(self) -> None:
        """Break off what runs, and wait for its end."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    async def _run(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        async with self._room:
            await work()

    def _forget(self, name: str, _task: asyncio.Task[None]) -> None:
        self._running.pop(name, None)
