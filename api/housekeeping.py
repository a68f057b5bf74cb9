"""Housekeeping of the api: Idempotency-Keys that are too old are forgotten."""

from __future__ import annotations

import asyncio

import structlog

from api.services import Services
from ondol.contract.errors import DatabaseUnavailable

PURGE_EVERY_S = 600.0

log = structlog.get_logger(__name__)


class Housekeeping:
    """A task beside the requests. Several api processes may do it at the same time."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._loop(), name="housekeeping")

    async def stop(self) -> None:
        """Stop between two rounds or in the middle of one: a purge that is not committed is done next time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def purge(self) -> int:
        """Forget old keys; how many."""
        older_than_s = self._services.settings.idempotency_ttl_s
        return await self._services.database.write(lambda uow: uow.idempotency.purge(older_than_s=older_than_s))

    async def _loop(self) -> None:
        while True:
            await asyncio.sleep(PURGE_EVERY_S)
            try:
                num_keys = await self.purge()
            except DatabaseUnavailable as exc:
                log.warning("housekeeping.not_done", reason=exc.message)
            else:
                log.debug("housekeeping.done", num_keys=num_keys)
