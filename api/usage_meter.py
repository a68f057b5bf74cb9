"""Usage of calls: summed in memory, written to SQL every second, off the way of any answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from api.database import AsyncDatabase
from ondol.contract.errors import DatabaseUnavailable
from ondol.contract.ids import new_id
from ondol.sql.unit_of_work import UnitOfWork

FLUSH_S = 1.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Usage:
    """What one project used of one version since the last flush."""

    num_calls: int = 0
    num_inputs: int = 0
    num_tokens: int = 0

    def add(self, other: Usage) -> None:
        """Add another sum to this one."""
        self.num_calls += other.num_calls
        self.num_inputs += other.num_inputs
        self.num_tokens += other.num_tokens


Sums = dict[tuple[str, str], Usage]
Mark = tuple[str, str]
"""A row that says that sums are written: a project, and a key of its own among the project's idempotency keys."""


class UsageMeter:
    """Sums by project and version. At most a second of usage is lost if the process is killed; none is counted twice.

    A write whose answer was lost may have been committed: it is tried again under the same id until its fate is known,
    and what is used meanwhile waits for the next one.
    """

    def __init__(self, database: AsyncDatabase) -> None:
        self._database = database
        self._sums: Sums = {}
        self._unwritten: tuple[str, Sums] | None = None
        self._written: Mark | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to flush."""
        self._task = asyncio.create_task(self._loop(), name="usage-flush")

    async def stop(self) -> None:
        """Flush the rest and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.flush()

    def add(self, project_id: str, model_ref: str, usage: Usage) -> None:
        """Count a call; never blocks."""
        self._sums.setdefault((project_id, model_ref), Usage()).add(usage)

    async def flush(self) -> None:
        """Write what was summed; what cannot be written is kept for the next time."""
        if self._unwritten is not None and not await self._write_out(*self._unwritten):
            return
        if self._sums:
            self._unwritten, self._sums = (new_id("use"), self._sums), {}
            await self._write_out(*self._unwritten)

    async def _write_out(self, flush_id: str, sums: Sums) -> bool:
        """Whether the sums are surely in SQL now."""
        mark, before = (min(sums)[0], f"usage:{flush_id}"), self._written
        try:
            await asyncio.shield(self._database.write(lambda uow: _write(uow, sums, mark, before)))
        except DatabaseUnavailable as exc:
            log.warning("usage.not_written", reason=exc.message)
            return False
        self._unwritten, self._written = None, mark
        return True

    async def _loop(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
            except Exception:  # the task's edge: what is summed waits for the next round
                log.exception("usage.flush_failed")


def _write(uow: UnitOfWork, sums: Mapping[tuple[str, str], Usage], mark: Mark, before: Mark | None) -> None:
    """Add the sums unless their mark says that this was done; the mark before it has served."""
    if not uow.idempotency.reserve(*mark, body_sha256=""):
        return
    if before is not None:
        uow.idempotency.forget(*before)
    for (project_id, model_ref), usage in sorted(sums.items(), key=lambda item: item[0]):
        uow.usage.add(
            project_id=project_id,
            model_ref=model_ref,
            num_calls=usage.num_calls,
            num_inputs=usage.num_inputs,
            num_tokens=usage.num_tokens,
        )
