"""A result as its parts: one of a whole job, one a shard of a sharded one; each holds the items of consecutive inputs.

Whoever reads a sharded result holds a page of shard rows and the bytes of one shard, however large the result is, and
no database connection between two reads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import orjson

from api.database import AsyncDatabase
from api.stored_items import StoredItems, placed
from api.stored_results import STORED, stored_bytes
from api.threads import in_store
from models_store.input_blobs import InputBlobs
from models_store.result_blobs import ResultBlobs
from ondol.contract.errors import JobNotFound, ModelStoreError
from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState
from ondol.sql.database import Database
from ondol.sql.records import JobRecord, JsonObject, ResultRecord, ShardRecord
from ondol.sql.unit_of_work import UnitOfWork

PAGE_SHARDS = 8
ERROR_CHUNK = 1_000
"""Inputs without a result that are made into items at a time."""

CANCELLED = {"code": "cancelled", "message": "the job was cancelled before this input was done", "param": None}
NOT_DONE = {"code": "not_done", "message": "the job has not come to this input yet", "param": None}


@dataclass(frozen=True, slots=True)
class ResultPart:
    """Items of `num_inputs` inputs from `first_input` on: `stored`, or one and the same `error` for each of them.

    `ids` are the caller's, by input, where a file of inputs names them.
    """

    first_input: int
    num_inputs: int
    stored: StoredItems | None
    error: JsonObject | None = None
    ids: Sequence[Any] | None = None

    def chunks(self) -> Iterator[list[dict[str, Any]]]:
        """All items as `GET /v1/jobs/{id}/result` shows them, a bounded amount at a time."""
        step = ERROR_CHUNK if self.stored is None else max(1, self.stored.chunk_inputs())
        for start in range(0, self.num_inputs, step):
            yield self.items(start, min(start + step, self.num_inputs))

    def items(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Items of the part's inputs from `start` to before `stop`."""
        if self.stored is not None:
            return self.stored.items(start, stop, first_input=self.first_input)
        failed = {"error": self.error, "tokens": 0, "truncated": False}
        if self.ids is None:
            return [{"index": self.first_input + i, **failed} for i in range(start, stop)]
        return [{"index": self.first_input + i, "id": self.ids[i], **failed} for i in range(start, stop)]


def whole_part(stored: StoredItems) -> ResultPart:
    """The one part of a job that has no shards."""
    return ResultPart(0, len(stored), stored, ids=stored.summary.get("ids"))


class ResultSources(Protocol):
    """Where results are."""

    @property
    def database(self) -> AsyncDatabase:
        """The rows."""

    @property
    def blobs(self) -> ResultBlobs:
        """Results too large for SQL."""

    @property
    def inputs(self) -> InputBlobs:
        """Payloads of shards: inputs without a result bear their ids only there."""


async def read_parts(sources: ResultSources, job: JobRecord) -> AsyncIterator[ResultPart]:
    """The parts of a sharded job in the order of inputs, together all `job.num_inputs` of them.

    Shards that end meanwhile are given as they are when their turn comes. ModelStoreError for a damaged or missing
    blob, JobNotFound when the job is deleted meanwhile.
    """
    reader = _Reader(job, sources.blobs, sources.inputs)
    while not reader.is_done:
        if reader.needs_page:
            reader.take(await sources.database.read(reader.look))
        yield await in_store(reader.next_part)


def read_parts_here(database: Database, blobs: ResultBlobs, inputs: InputBlobs, job: JobRecord) -> Iterator[ResultPart]:
    """The same on the calling thread, which blocks."""
    reader = _Reader(job, blobs, inputs)
    while not reader.is_done:
        if reader.needs_page:
            reader.take(database.read(reader.look))
        yield reader.next_part()


async def find_sample(sources: ResultSources, job: JobRecord) -> StoredItems | None:
    """The stored result of the first shard that has one: what the others look like."""
    place = 0
    while place < job.num_inputs:
        page = await sources.database.read(partial(_page, job.id, place))
        for shard in page:
            if shard.result is not None:
                return await in_store(_load, job.kind, sources.blobs, shard.result)
        if not page:
            return None
        place = page[-1].first_input + page[-1].num_inputs
    return None


def _page(job_id: str, place: int, uow: UnitOfWork) -> list[ShardRecord]:
    return uow.shards.page(job_id, from_input=place, limit=PAGE_SHARDS)


def _load(kind: JobKind, blobs: ResultBlobs, record: ResultRecord) -> StoredItems:
    return STORED[kind].read(record.summary, stored_bytes(blobs, record))


class _Reader:
    """How far a sharded result has been read."""

    def __init__(self, job: JobRecord, blobs: ResultBlobs, inputs: InputBlobs) -> None:
        self._job = job
        self._blobs = blobs
        self._inputs = inputs
        self._place = 0
        self._page: list[ShardRecord] = []

    @property
    def is_done(self) -> bool:
        return self._place >= self._job.num_inputs

    @property
    def needs_page(self) -> bool:
        return not self._page

    def look(self, uow: UnitOfWork) -> list[ShardRecord]:
        return _page(self._job.id, self._place, uow)

    def take(self, page: list[ShardRecord]) -> None:
        if not page:
            raise JobNotFound(f"job {self._job.id} was deleted while its result was read")
        self._page = page[::-1]

    def next_part(self) -> ResultPart:
        """The next shard's part, its bytes read and verified."""
        shard = self._page.pop()
        if shard.first_input != self._place:
            raise ModelStoreError(f"shard {shard.id} begins at input {shard.first_input}, not at {self._place}")
        self._place += shard.num_inputs
        if shard.state is JobState.SUCCEEDED:
            return self._done(shard)
        return ResultPart(shard.first_input, shard.num_inputs, None, _error_of(shard), self._ids_of(shard))

    def _done(self, shard: ShardRecord) -> ResultPart:
        if shard.result is None:
            raise ModelStoreError(f"shard {shard.id} succeeded and has no result")
        stored = _load(self._job.kind, self._blobs, shard.result)
        if len(stored) != shard.num_inputs:
            raise ModelStoreError(f"the result of shard {shard.id} has {len(stored)} items, not {shard.num_inputs}")
        return ResultPart(shard.first_input, shard.num_inputs, stored, ids=shard.result.summary.get("ids"))

    def _ids_of(self, shard: ShardRecord) -> list[Any] | None:
        """The ids that stand beside the inputs of a shard without a result; only files have them."""
        if shard.input_blob is None:
            return None
        payload = orjson.loads(self._inputs.read(shard.input_blob))
        return payload.get("ids") if isinstance(payload, dict) else None


def _error_of(shard: ShardRecord) -> JsonObject:
    """What stands in place of the outputs of a shard that has none."""
    if shard.state is JobState.CANCELLED:
        return CANCELLED
    if shard.state is JobState.FAILED:
        error = shard.error or {"code": "internal_error", "message": "the shard failed", "param": None}
        return placed(error, shard.first_input)
    return NOT_DONE
