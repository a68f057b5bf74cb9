"""Sends one call, as an api process does, and waits for no answer: `… skewed_caller REDIS_URL WORKER SECONDS`."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress

from ondol.broker.calls import CallRequest, CallSender, request_key
from ondol.broker.connection import connect
from ondol.contract.kinds import JobKind
from ondol.contract.states import Priority
from tests.waiting import wait_until

LIMIT_S = 30


async def send(redis_url: str, worker: str, within_s: float) -> None:
    """Put the call, which may take so long, into the worker's list; returns when it lies there."""
    sender = CallSender(redis_url, "api_of_tests")
    await sender.start()
    request = CallRequest("ver_1", "tiny:1", JobKind.EMBEDDING, {}, ["warm"], time.time() + within_s)
    call = asyncio.create_task(sender.call(worker, request))
    with connect(redis_url) as redis:
        key = request_key(worker, Priority.INTERACTIVE)
        await asyncio.to_thread(wait_until, lambda: redis.exists(key), within_s=LIMIT_S, what="the call to be sent")
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call
    await sender.stop()


if __name__ == "__main__":
    asyncio.run(send(sys.argv[1], sys.argv[2], float(sys.argv[3])))
