"""Ending a task that waits inside the Redis client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

_AGAIN_S = 0.25


async def end_tasks(tasks: Iterable[asyncio.Task[None] | None]) -> None:
    """Cancel the tasks and return when all of them are done, however they ended.

    They are cancelled again and again: a cancellation that meets a client's own time limit is lost in Python 3.11.
    """
    open_tasks = {task for task in tasks if task is not None and not task.done()}
    while open_tasks:
        for task in open_tasks:
            task.cancel()
        _, open_tasks = await asyncio.wait(open_tasks, timeout=_AGAIN_S)
