"""Wake-ups: whoever waits for a job hears of it; whoever delivers notices hears only where there may be one."""

from __future__ import annotations

import asyncio

import pytest

from ondol.broker.wake import WakeBus, WakeListener, wait_event
from tests.servers import RedisServer

pytestmark = pytest.mark.integration

LIMIT_S = 20.0


def test_a_hint_without_notices_reaches_only_those_who_wait_for_its_jobs(redis_server: RedisServer) -> None:
    asyncio.run(_hear(redis_server.url))


async def _hear(redis_url: str) -> None:
    bus, listener = WakeBus(redis_url), WakeListener(redis_url)
    with listener.watch("job_1") as first, listener.watch("job_2") as second, listener.watch_all() as any_end:
        await listener.start()
        assert await wait_event(any_end, LIMIT_S)  # the subscription stands: everybody looks
        for event in (first, second, any_end):
            event.clear()
        bus.wake(["job_1"], has_notices=False)
        assert await wait_event(first, LIMIT_S)
        assert not any_end.is_set()
        bus.wake(["job_2"])
        assert await wait_event(second, LIMIT_S)
        assert any_end.is_set()
    await listener.stop()
    await asyncio.to_thread(bus.close)
