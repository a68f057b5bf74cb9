"""Waiting for a job to move: woken by hints, sure by polling, ended by a stop of the process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from api.services import Services
from ondol.contract.states import TERMINAL
from ondol.sql.records import JobRecord

POLL_S = 2.0


async def wait_for_end(services: Services, project_id: str, job_id: str, *, until: float) -> JobRecord:
    """The job once it has ended, or as it is at `until` (monotonic seconds); JobNotFound."""
    with services.listener.watch(job_id) as moved:
        while True:
            moved.clear()
            job = await services.database.read(lambda uow: uow.jobs.get(job_id, project_id))
            left_s = until - time.monotonic()
            if job.state in TERMINAL or left_s <= 0 or services.stopping.is_set():
                return job
            await wait_any([moved, services.stopping], min(left_s, POLL_S))


async def wait_any(events: Sequence[asyncio.Event], timeout_s: float) -> None:
    """Return when one of the events is set, or after the time."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
