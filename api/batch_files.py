"""Output files of a batch that has ended: written shard by shard, then recorded in one transaction.

Ids and bytes follow from the job alone, so that whoever writes them again writes the same.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import structlog

from api.batch_json import needs_files
from api.batch_lines import output_lines
from api.result_parts import CANCELLED, ResultPart, read_parts
from api.services import Services
from api.threads import in_store
from models_store.file_blobs import FileWriter
from ondol.contract.errors import DatabaseUnavailable, ModelStoreError, NotFound, OndolError, PartGone
from ondol.contract.files import BATCH_OUTPUT
from ondol.sql.files import NewFile
from ondol.sql.purging import Part
from ondol.sql.records import JobRecord, JsonObject

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

log = structlog.get_logger(__name__)


def output_file_id(job: JobRecord, *, is_errors: bool) -> str:
    """The id of a batch's output or error file: it sorts by the batch's end, and each end has its own."""
    assert job.finished_at is not None
    milliseconds = int(job.finished_at * 1000)
    time_part = "".join(_ALPHABET[(milliseconds >> shift) & 31] for shift in range(45, -1, -5))
    name = f"{job.id}/{job.finished_at!r}/{'errors' if is_errors else 'output'}"
    rest = hashlib.sha256(name.encode()).digest()
    return f"file_{time_part}{''.join(_ALPHABET[byte & 31] for byte in rest[:16])}"


async def write_batch_files(services: Services, job: JobRecord) -> None:
    """Write and record the files of a batch that has ended. OndolError if that cannot be done now; nothing is left.

    Where a result is damaged for good, the batch says so, and is not tried again.
    """
    files = _BatchFiles(services, job)
    try:
        await files.write()
        await files.record()
    except ModelStoreError as exc:
        if exc.retryable:
            raise
        await files.give_up(await _cause(services, job, exc))
    finally:
        await asyncio.shield(in_store(files.abort))


@dataclass(slots=True)
class _OutputFile:
    """One of the two files; made with its first line."""

    id: str
    suffix: str
    writer: FileWriter
    num_lines: int = 0


@dataclass(slots=True)
class _BatchFiles:
    """The files of one batch while they are written."""

    services: Services
    job: JobRecord
    output: _OutputFile = field(init=False)
    errors: _OutputFile = field(init=False)

    def __post_init__(self) -> None:
        self.output, self.errors = (self._file(is_errors=is_errors) for is_errors in (False, True))

    async def write(self) -> None:
        """All lines; one shard is in memory at a time."""
        async for part in read_parts(self.services, self.job):
            if part.error is not CANCELLED:  # such lines were not run, and are in neither file
                await in_store(self._write_lines, part)

    async def record(self) -> None:
        """Make the files appear, and the batch name them."""
        written = [file for file in (self.output, self.errors) if file.num_lines]
        for file in written:
            await in_store(file.writer.commit)
        total = int((self.job.batch or {}).get("num_lines") or 0)
        counts = {"completed": self.output.num_lines, "failed": self.errors.num_lines}
        changes: JsonObject = {
            "output_file_id": self.output.id if self.output.num_lines else None,
            "error_file_id": self.errors.id if self.errors.num_lines else None,
            "error": None,
            "counts": {"total": max(total, sum(counts.values())), **counts},
        }
        await self._settle(changes, [self._record_of(file) for file in written])
        log.info("batch.files_written", job_id=self.job.id, **counts)

    async def give_up(self, error: OndolError) -> None:
        """Say in the batch why its files will never be written."""
        await self._settle({"output_file_id": None, "error_file_id": None, "error": error.as_dict()}, [])
        if isinstance(error, PartGone):
            log.info("batch.results_gone", job_id=self.job.id)
        else:
            log.error("batch.result_damaged", job_id=self.job.id, reason=error.message)

    def abort(self) -> None:
        """Leave nothing half written behind."""
        self.output.writer.abort()
        self.errors.writer.abort()

    async def _settle(self, changes: JsonObject, files: Sequence[NewFile]) -> None:
        job_id, finished_at = self.job.id, self.job.finished_at
        assert finished_at is not None
        await self.services.database.write(
            lambda uow: uow.batches.set_files(job_id, finished_at=finished_at, changes=changes, files=files)
        )

    def _write_lines(self, part: ResultPart) -> None:
        for line in output_lines(self.job.id, part):
            file = self.errors if line.has_failed else self.output
            file.writer.write(line.content)
            file.num_lines += 1

    def _file(self, *, is_errors: bool) -> _OutputFile:
        file_id = output_file_id(self.job, is_errors=is_errors)
        return _OutputFile(file_id, "errors" if is_errors else "output", self.services.files.create(file_id))

    def _record_of(self, file: _OutputFile) -> NewFile:
        return NewFile(
            file.id,
            self.job.project_id,
            f"{self.job.id}_{file.suffix}.jsonl",
            BATCH_OUTPUT,
            file.writer.num_bytes,
            file.writer.sha256,
            (self.job.batch or {}).get("output_expires_after_s"),
        )


async def _cause(services: Services, job: JobRecord, error: OndolError) -> OndolError:
    """Why a result is not there: it was deleted when its time was over, or else what reading it said."""
    try:
        await services.database.read(lambda uow: uow.purging.check_part(job.id, Part.RESULTS))
    except PartGone as gone:
        return gone
    return error


def finish_soon(services: Services, jobs: Sequence[JobRecord]) -> None:
    """Have the files written of those batches that need them, beside whoever asks."""
    for job in jobs:
        if needs_files(job):
            services.background.begin(f"batch {job.id}", partial(finish_batch, services, job))


async def finish_batch(services: Services, job: JobRecord) -> None:
    """Write the files of a batch that has ended; what fails is logged, and done again by the next round."""
    try:
        await write_batch_files(services, job)
    except (DatabaseUnavailable, ModelStoreError, NotFound) as exc:  # NotFound: deleted meanwhile
        log.warning("batch.files_not_written", job_id=job.id, reason=exc.message)
    except Exception:  # the task's edge: the next request for the batch tries again
        log.exception("batch.files_failed", job_id=job.id)
