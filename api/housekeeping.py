"""Housekeeping of the api: old Idempotency-Keys, and files of the store that nothing names any more.

Rows are purged by the reconciler (`ondol.sql.purging`); the apis reach the store, so they delete what the rows named.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog

from api.batch_files import finish_soon
from api.services import Services
from api.threads import in_store
from models_store.garbage import StoreGarbage
from ondol.contract.errors import DatabaseUnavailable, ModelStoreError
from ondol.contract.ids import new_id
from ondol.sql.unit_of_work import UnitOfWork

PURGE_EVERY_S = 60.0
ORPHANS_EVERY_S = 600.0
ORPHANS_AFTER = timedelta(hours=1)
BATCHES_EVERY_S = 60.0
MAX_BATCHES = 100
"""Of one round."""
BATCHES = "batches"
"""The lead under which one process at a time looks for batches without files."""
COLLECTION = "collection"
"""The lead under which one process at a time collects; it is not renewed, and its end is when the next is due."""
GRACE_H = 48.0
_DAY_S = 86_400.0
_LONGEST_COLLECTION_S = 6 * 3_600.0

log = structlog.get_logger(__name__)

Work = Callable[[], Awaitable[None]]


class Housekeeping:
    """A task beside the requests. Several api processes may do it at the same time."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._garbage = StoreGarbage(services.settings.resolved_store_url())
        self._database = services.database.without_limit()
        self._tasks: list[asyncio.Task[None]] = []
        self._last_batch = ""

    def start(self) -> None:
        """Begin."""
        for name, work, pause_s in (
            ("housekeeping", self._purge, PURGE_EVERY_S),
            ("orphans", self._delete_orphans, ORPHANS_EVERY_S),
            ("collection", self.collect, PURGE_EVERY_S),
            ("batches", self.finish_batches, BATCHES_EVERY_S),
        ):
            self._tasks.append(asyncio.create_task(self._loop(work, pause_s), name=name))

    async def stop(self) -> None:
        """Stop between two rounds or in the middle of one: what is not done is done next time."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def purge_keys(self) -> int:
        """Forget old Idempotency-Keys; how many."""
        older_than_s = self._services.settings.idempotency_ttl_s
        num = 0
        while True:
            step = await self._database.write(lambda uow: uow.purging.purge_keys(older_than_s=older_than_s))
            num += step.num
            if not step.may_be_more:
                return num

    async def sweep(self) -> int:
        """Delete the files that purged or deleted rows named, each before its path is forgotten; how many.

        One that cannot be deleted stays on the list for the next round.
        """
        num, place = 0, ""
        while True:
            paths = await self._database.read(lambda uow, behind=place: uow.purging.garbage(behind=behind))  # type: ignore[misc]  # bound at definition
            if not paths:
                return num
            deleted = await in_store(self._delete, paths)
            await self._database.write(lambda uow, done=deleted: uow.purging.forget_garbage(done))  # type: ignore[misc]  # bound at definition
            self._services.metrics.sweeps.deleted.inc(len(deleted))
            num, place = num + len(deleted), paths[-1]

    async def finish_batches(self) -> None:
        """If no other process did lately: have the files of ended batches written, before their results are gone.

        Whoever asks for a batch has them written at once; but nobody may ask in time. A round goes on where the last
        one ended: batches whose files cannot be written do not keep the others from theirs.
        """
        if not await self._database.write(lambda uow: _take_turn(uow, BATCHES, BATCHES_EVERY_S / 2)):
            return
        behind = self._last_batch
        found = await self._database.read(lambda uow: uow.batches.without_files(limit=MAX_BATCHES, behind=behind))
        self._last_batch = "" if len(found) < MAX_BATCHES else max(job.id for job in found)
        finish_soon(self._services, found)

    async def collect(self) -> None:
        """If it is due: let a child delete what nothing in the store needs, as `ondol models gc --yes` does."""
        every_s = self._services.settings.collect_days * _DAY_S
        if not every_s or not await self._database.write(lambda uow: _take_turn(uow, COLLECTION, every_s)):
            return
        argv = ("-m", "models_store.collection", "--grace-h", str(GRACE_H), "--yes")
        child = await asyncio.create_subprocess_exec(sys.executable, *argv, stdout=asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(_LONGEST_COLLECTION_S):
                out, _ = await child.communicate()
        finally:
            if child.returncode is None:
                child.kill()
                await asyncio.shield(child.wait())
        self._tell(out)

    def _tell(self, out: bytes) -> None:
        try:
            found = json.loads(out)
        except ValueError:
            self._services.metrics.sweeps.collected("failed")
            log.warning("collection.failed")
            return
        if "error" in found:
            self._services.metrics.sweeps.collected("refused")
            log.warning("collection.refused", reason=found["error"]["message"])
            return
        self._services.metrics.sweeps.collected("done")
        log.info(
            "collection.done",
            num_manifests=len(found["manifests"]),
            num_blobs=found["num_blobs"],
            num_job_folders=len(found["job_folders"]),
        )

    def _delete(self, paths: list[str]) -> list[str]:
        deleted = []
        for path in paths:
            try:
                self._garbage.delete(path)
            except ModelStoreError as exc:
                log.warning("housekeeping.not_deleted", path=path, reason=exc.message)
            else:
                deleted.append(path)
        return deleted

    async def _purge(self) -> None:
        num_keys, num_files = await self.purge_keys(), await self.sweep()
        log.debug("housekeeping.done", num_keys=num_keys, num_files=num_files)

    async def _delete_orphans(self) -> None:
        """Blobs of uploads that were never recorded, or broke off."""
        sync = self._services.database.sync
        await in_store(
            lambda: self._services.files.delete_orphans(
                lambda ids: sync.read(lambda uow: uow.files.existing(ids)), older_than=ORPHANS_AFTER
            )
        )

    async def _loop(self, work: Work, pause_s: float) -> None:
        while True:
            await asyncio.sleep(pause_s)
            try:
                await work()
            except (DatabaseUnavailable, ModelStoreError) as exc:
                log.warning("housekeeping.not_done", reason=exc.message)
            except Exception:  # the task's edge: the next round is tried
                log.exception("housekeeping.failed")


def _take_turn(uow: UnitOfWork, name: str, every_s: float) -> bool:
    """Whether nobody has had this turn for so long; then nobody else has for so long."""
    return uow.leaders.lead(name, holder=new_id("col"), lease_s=every_s)
