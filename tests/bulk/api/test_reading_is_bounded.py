"""However large a result is, its reader holds a page of shard rows and one shard's data, and no connection between."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import Pool

from api.database import AsyncDatabase
from api.result_parts import PAGE_SHARDS, read_parts
from api.vectors import StoredVectors
from models_store.input_blobs import InputBlobs
from models_store.result_blobs import ResultBlobs
from ondol.contract.errors import JobNotFound
from ondol.contract.states import JobState
from ondol.sql.database import Database
from ondol.sql.records import JobRecord, NewShard, ShardRecord
from tests.job_fixtures import completions, new_job, open_session, project_of, ring_and_claim
from tests.servers import ON_SQLITE

pytestmark = [pytest.mark.integration, ON_SQLITE]

NUM_SHARDS = 5 * PAGE_SHARDS
SUMMARY = {"tokens": [3], "truncated": [], "errors": {}, "num_tokens": 3, "shape": [1, 1]}


@dataclass(frozen=True)
class Sources:
    """Where the results of the test are."""

    database: AsyncDatabase
    blobs: ResultBlobs
    inputs: InputBlobs


@pytest.fixture
def sources(database: Database, tmp_path: Path) -> Sources:
    """The same as the api sees it."""
    store_url = f"file://{tmp_path / 'store'}"
    return Sources(AsyncDatabase(database), ResultBlobs(store_url), InputBlobs(store_url))


class Taken:
    """How many connections of this process's pools are taken."""

    def __init__(self) -> None:
        self.num = self.num_ever = 0

    def take(self, *_: object) -> None:
        """One more."""
        self.num += 1
        self.num_ever += 1

    def give_back(self, *_: object) -> None:
        """One less."""
        self.num -= 1


@pytest.fixture
def few_objects() -> Iterator[None]:
    """Leaves what was there before the test out of collections, which would take a second each."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def taken() -> Iterator[Taken]:
    """Counts from the beginning of the test."""
    made = Taken()
    hooks = (("checkout", made.take), ("checkin", made.give_back))
    for name, hook in hooks:
        sa.event.listen(Pool, name, hook)
    yield made
    for name, hook in hooks:
        sa.event.remove(Pool, name, hook)


def finished_job(database: Database) -> JobRecord:
    """A job of many shards of one input each, all done."""
    project_id = project_of(database)
    shards = tuple(NewShard(i, i, 1, 8, payload=b'["a"]') for i in range(NUM_SHARDS))
    job = replace(new_job(project_id), num_inputs=NUM_SHARDS, shards=shards)
    database.write(lambda uow: uow.jobs.add_all([job]))
    session_id = open_session(database)
    claimed = ring_and_claim(database, session_id)
    assert len(claimed) == NUM_SHARDS
    done = [replace(one, summary=SUMMARY) for one in completions(claimed)]
    database.write(lambda uow: uow.attempts.complete(done))
    found = database.read(lambda uow: uow.jobs.get(job.id, project_id))
    assert found.state is JobState.SUCCEEDED
    return found


def alive() -> int:
    gc.collect()
    return sum(type(one) is ShardRecord for one in gc.get_objects())


@pytest.mark.usefixtures("few_objects")
def test_a_page_of_shards_is_alive_at_a_time(taken: Taken, database: Database, sources: Sources) -> None:
    job = finished_job(database)

    async def read() -> list[int]:
        seen, arrays = [], []
        async for part in read_parts(sources, job):
            assert isinstance(part.stored, StoredVectors)
            seen.append(alive())
            arrays.append(weakref.ref(part.stored.rows))
            gc.collect()
            assert sum(one() is not None for one in arrays) <= 2
            assert taken.num == 0
        return seen

    before = taken.num_ever
    seen = asyncio.run(read())
    assert len(seen) == NUM_SHARDS and max(seen) <= PAGE_SHARDS
    assert taken.num_ever - before == NUM_SHARDS / PAGE_SHARDS


def test_a_job_that_is_deleted_meanwhile_does_not_look_complete(database: Database, sources: Sources) -> None:
    job = finished_job(database)

    async def read() -> int:
        num = 0
        async for _ in read_parts(sources, job):
            if num == 0:
                database.write(lambda uow: uow.jobs.delete(job.id, job.project_id))
            num += 1
        return num

    with pytest.raises(JobNotFound):
        asyncio.run(read())
