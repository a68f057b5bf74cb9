"""The api's threads, in groups by what they wait for: what hangs in one group holds up no other, nor the process's end.

An event loop has threads of its own, which look up names of hosts too; nothing that waits for the store is given to
those.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, TypeVar

from ondol.contract.errors import StoreUnavailable

T = TypeVar("T")

HEAVY_BYTES = 32 * 1024
STORE_THREADS = 32
STORE_WAIT_S = 5.0
"""Longest that work on the store waits to begin."""
_CHECK_THREADS = 4


class DaemonThreads(Executor):
    """At most so many threads, begun when they are needed. The process ends without waiting for them.

    Work that is cancelled before a thread was free for it is let go of at once, with all that it holds.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._calls: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """One for each work that was ever queued, cancelled or not; False: a thread is to end."""
        self._queued: OrderedDict[Future[Any], Callable[[], Any]] = OrderedDict()
        self._lock = threading.Lock()
        self._num_threads = 0
        self._num_idle = 0
        """Threads that wait, less the work that is queued for them: below zero where there are too few."""
        self._is_closed = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """`fn` runs as soon as a thread is free; RuntimeError after `shutdown`."""
        future: Future[T] = Future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError(f"the threads {self._name} are closed")
            self._queued[future] = partial(fn, *args, **kwargs)
            self._calls.put(True)
            self._num_idle -= 1
            if self._num_idle < 0 and self._num_threads < self._most:
                self._num_threads += 1
                self._num_idle += 1
                name = f"{self._name}-{self._num_threads}"
                threading.Thread(target=self._run, name=name, daemon=True).start()
        future.add_done_callback(self._forget)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002 - the signature is the library's
        """Take no more work; threads end with what is queued, and nobody waits for them."""
        with self._lock:
            self._is_closed = True
            for _ in range(self._num_threads):
                self._calls.put(False)
            queued = list(self._queued) if cancel_futures else []
        for future in queued:
            future.cancel()

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._queued.pop(future, None)

    def _run(self) -> None:
        while self._calls.get():
            with self._lock:
                item = self._queued.popitem(last=False) if self._queued else None
            if item is not None:
                _carry_out(*item)
            del item  # an idle thread holds on to no result
            with self._lock:
                self._num_idle += 1


def _carry_out(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as exc:  # noqa: BLE001 - the thread's edge: whoever waits is answered
        future.set_exception(exc)
    else:
        future.set_result(result)


_cpu = DaemonThreads(os.cpu_count() or 1, "api-cpu")
_store = DaemonThreads(STORE_THREADS, "api-store")
_checks = DaemonThreads(_CHECK_THREADS, "api-check")
"""For all of a process; none of their threads runs before there is work for it."""


async def run_sized(num_bytes: int, work: Callable[[], T]) -> T:
    """What `work` returns: at once for a few bytes, on a thread for more, so that the event loop keeps turning.

    `work` computes, and waits for nothing.
    """
    if num_bytes <= HEAVY_BYTES:
        return work()
    return await compute(work)


async def compute(work: Callable[..., T], *args: Any) -> T:
    """What `work` returns, run on one of as many threads as there are cores; it waits for nothing."""
    return await asyncio.get_running_loop().run_in_executor(_cpu, work, *args)


async def in_check(work: Callable[[], T]) -> T:
    """What `work` returns, run on a thread for questions about the process's own state."""
    return await asyncio.get_running_loop().run_in_executor(_checks, work)


async def in_store(work: Callable[..., T], *args: Any, wait_s: float = STORE_WAIT_S) -> T:
    """What `work` returns, which reads or writes the store, however long that takes.

    StoreUnavailable, and it is never run, when all threads for the store have been busy for `wait_s`: then the store
    hangs, or is asked for more than it gives.
    """
    future = _store.submit(work, *args)
    outcome = asyncio.wrap_future(future)
    try:
        await asyncio.wait([outcome], timeout=wait_s)
    except asyncio.CancelledError:
        outcome.cancel()
        raise
    if not outcome.done() and future.cancel():
        raise StoreUnavailable(
            f"the {STORE_THREADS} readers and writers of the store have been busy for {wait_s:g} s; come back later"
        )
    return await outcome
