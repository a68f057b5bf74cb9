"""The database as coroutines: reads on a few threads, writes through the grouping writer; the loop never blocks."""

from __future__ import annotations

import asyncio
import copy
import threading
from typing import TypeVar

from api.threads import DaemonThreads
from ondol.contract.errors import DatabaseUnavailable
from ondol.sql.database import Database, Work
from ondol.sql.unit_of_work import UnitOfWork

T = TypeVar("T")

READ_THREADS = 8


class AsyncDatabase:
    """One process's database seen from its event loop. Errors are those of `Database`.

    `limit_s`: how long one read or write is waited for before it is DatabaseUnavailable; None: as long as it takes.
    """

    def __init__(self, database: Database, *, limit_s: float | None = None) -> None:
        self.sync = database
        self._limit_s = limit_s
        self._threads = DaemonThreads(READ_THREADS, "api-read")

    def without_limit(self) -> AsyncDatabase:
        """The same database for work that nobody waits for, which must know whether it was done."""
        other = copy.copy(self)
        other._limit_s = None
        return other

    async def read(self, work: Work[T]) -> T:
        """What `work` returns, run in a read transaction on one of the threads."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, self.sync.read, work)
        try:
            return await asyncio.wait_for(running, self._limit_s)
        except TimeoutError as exc:
            raise self._too_slow() from exc

    async def write(self, work: Work[T]) -> T:
        """What `work` returned, once it is committed. `work` may run more than once; cancelling does not undo it.

        One that was waited for in vain and has not begun is never run.
        """
        is_given_up, has_begun = threading.Event(), threading.Event()

        def unless_given_up(uow: UnitOfWork) -> T:
            has_begun.set()  # before the look, so that what has not begun surely never runs
            if is_given_up.is_set():
                raise DatabaseUnavailable("nobody waits for this any more")
            return work(uow)

        try:
            return await asyncio.wait_for(asyncio.wrap_future(self.sync.submit(unless_given_up)), self._limit_s)
        except TimeoutError as exc:
            is_given_up.set()
            error = self._too_slow()
            error.may_be_done = has_begun.is_set()
            raise error from exc

    async def close(self) -> None:
        """Finish writes and reads, then let go of all connections."""
        await asyncio.to_thread(self.sync.close)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _too_slow(self) -> DatabaseUnavailable:
        return DatabaseUnavailable(f"the database did not answer within {self._limit_s} s; try again")
