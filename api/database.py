"""The database as coroutines: reads on a few threads, writes through the grouping writer; the loop never blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ondol.sql.database import Database, Work

T = TypeVar("T")

READ_THREADS = 8
HEAVY_BYTES = 32 * 1024


class AsyncDatabase:
    """One process's database seen from its event loop. Errors are those of `Database`."""

    def __init__(self, database: Database) -> None:
        self.sync = database
        self._threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="api-read")

    async def read(self, work: Work[T]) -> T:
        """What `work` returns, run in a read transaction on one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.sync.read, work)

    async def write(self, work: Work[T]) -> T:
        """What `work` returned, once it is committed. `work` may run more than once; cancelling does not undo it."""
        return await asyncio.wrap_future(self.sync.submit(work))

    async def close(self) -> None:
        """Finish writes and reads, then let go of all connections."""
        await asyncio.to_thread(self.sync.close)
        self._threads.shutdown(wait=False)


async def run_sized(num_bytes: int, work: Callable[[], T]) -> T:
    """What `work` returns: at once for a few bytes, on a thread for more, so that the event loop keeps turning."""
    if num_bytes <= HEAVY_BYTES:
        return work()
    return await asyncio.to_thread(work)
