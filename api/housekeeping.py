"""Housekeeping of the api: old Idempotency-Keys, expired files, and what broken uploads left."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from api.services import Services
from ondol.contract.errors import DatabaseUnavailable, ModelStoreError
from ondol.sql.files import FileRecord
from ondol.sql.unit_of_work import UnitOfWork

PURGE_EVERY_S = 600.0
ORPHANS_AFTER = timedelta(hours=1)

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

    async def purge_files(self) -> list[str]:
        """Delete expired files that no unfinished job names, then blobs without a row; the names of what is gone."""
        expired = [file.id for file in await self._services.database.write(_forget_expired)]
        for file_id in expired:
            await asyncio.to_thread(self._services.files.delete, file_id)
        sync = self._services.database.sync
        orphans = await asyncio.to_thread(
            self._services.files.delete_orphans,
            lambda ids: sync.read(lambda uow: uow.files.existing(ids)),
            older_than=ORPHANS_AFTER,
        )
        return expired + orphans

    async def _loop(self) -> None:
        while True:
            await asyncio.sleep(PURGE_EVERY_S)
            try:
                num_keys = await self.purge()
                num_files = len(await self.purge_files())
            except (DatabaseUnavailable, ModelStoreError) as exc:
                log.warning("housekeeping.not_done", reason=exc.message)
            except Exception:  # the task's edge: the next round is tried
                log.exception("housekeeping.failed")
            else:
                log.debug("housekeeping.done", num_keys=num_keys, num_files=num_files)


def _forget_expired(uow: UnitOfWork) -> list[FileRecord]:
    expired = uow.files.expired()
    uow.files.forget([file.id for file in expired])
    return expired
