"""The output of a batch is written when it has ended, whoever asks; and when it is too late, that is what is said."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from api.background import Background
from api.batch_files import write_batch_files
from api.batch_json import batch_json, needs_files
from api.database import AsyncDatabase
from api.housekeeping import Housekeeping
from api.services import Services
from models_store.file_blobs import FileBlobs
from models_store.input_blobs import InputBlobs
from models_store.result_blobs import ResultBlobs
from ondol.metrics.roles import ApiMetrics
from ondol.settings import ApiSettings
from ondol.sql.database import Database
from ondol.sql.records import JobRecord, NewShard
from tests.job_fixtures import (
    completions,
    finish_messages,
    new_job,
    open_database,
    open_session,
    project_of,
    ring_and_claim,
)
from tests.overload.test_job_lists import plans
from tests.retention.aged import age, purge_all
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

BATCH = {"endpoint": "/v1/embeddings", "completion_window": "24h", "num_lines": 2}
SUMMARY = {"shape": [1, 1], "tokens": [3], "truncated": [], "errors": {}, "model": "m:1", "encoding": "float"}


@pytest.fixture
def settings(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ApiSettings:
    monkeypatch.setenv("ONDOL_STORE_URL", f"file://{tmp_path / 'store'}")
    monkeypatch.setenv("ONDOL_DATABASE_URL", database.url)
    return ApiSettings()


def services_of(database: Database, settings: ApiSettings) -> Services:
    """Those of an api that batches need."""
    url = settings.resolved_store_url()
    made = SimpleNamespace(
        settings=settings,
        database=AsyncDatabase(database),
        metrics=ApiMetrics(),
        files=FileBlobs(url),
        blobs=ResultBlobs(url),
        inputs=InputBlobs(url),
        background=Background(),
    )
    return cast(Services, made)


def ended_batch(database: Database, *, days_ago: float = 0.0, shape: Sequence[int] = (1, 1)) -> JobRecord:
    """A batch of two lines in two shards, which succeeded so long ago; `shape`: what is said of a shard's vectors."""
    payloads = [json.dumps({"inputs": ["a"], "ids": [f"line-{i}"]}).encode() for i in (0, 1)]
    shards = tuple(NewShard(i, i, 1, 4, payload=payload) for i, payload in enumerate(payloads))
    job = dataclasses.replace(new_job(project_of(database)), num_inputs=2, shards=shards, batch=BATCH)
    [record] = database.write(lambda uow: uow.jobs.add_all([job]))
    session_id = open_session(database)
    summary = SUMMARY | {"shape": shape}
    while claimed := ring_and_claim(database, session_id):
        done = [
            dataclasses.replace(one, data=b"\0" * 4, summary=summary | {"ids": [f"line-{one.job_id[-1]}"]})
            for one in completions(claimed)
        ]
        database.write(lambda uow, d=done: uow.attempts.complete(d))  # type: ignore[misc]  # bound at definition
        finish_messages(database)
    age(database, [record.id], days_ago)
    return found(database, record)


def found(database: Database, job: JobRecord) -> JobRecord:
    """The job as it is now."""
    return database.read(lambda uow: uow.jobs.get(job.id, job.project_id))


def test_a_batch_that_nobody_asks_about_has_its_files(database: Database, settings: ApiSettings) -> None:
    job, other = ended_batch(database), ended_batch(database)
    assert needs_files(job) and needs_files(other)

    async def one_round() -> None:
        services = services_of(database, settings)
        await Housekeeping(services).finish_batches()
        both_done = lambda: not any(needs_files(found(database, one)) for one in (job, other))  # noqa: E731
        await asyncio.to_thread(wait_until, both_done, within_s=20, what="the files of both")
        await Housekeeping(services_of(database, settings)).finish_batches()  # another process, whose turn it is not
        await services.background.stop()

    asyncio.run(one_round())
    shown = batch_json(found(database, job))
    assert shown["status"] == "completed" and shown["request_counts"]["completed"] == 2
    with services_of(database, settings).files.open(shown["output_file_id"]) as file:
        assert [json.loads(line)["custom_id"] for line in file] == ["line-0", "line-1"]
    assert database.read(lambda uow: uow.batches.without_files(limit=10)) == []


def test_batches_that_cannot_be_written_do_not_hold_back_later_ones(
    database: Database, settings: ApiSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("api.housekeeping.MAX_BATCHES", 1)
    monkeypatch.setattr("api.housekeeping.BATCHES_EVERY_S", 0.0)  # every round has its turn
    broken, later = ended_batch(database, shape=()), ended_batch(database)

    async def rounds() -> None:
        services = services_of(database, settings)
        housekeeping = Housekeeping(services)
        for _ in range(2):
            await housekeeping.finish_batches()
        is_done = lambda: not needs_files(found(database, later))  # noqa: E731
        await asyncio.to_thread(wait_until, is_done, within_s=20, what="the files of the later one")
        await housekeeping.finish_batches()  # behind the last there is none
        await services.background.stop()
        assert needs_files(found(database, broken)) and capsys.readouterr().out.count("batch.files_failed") == 1
        await housekeeping.finish_batches()
        is_tried_again = lambda: "files_failed" in capsys.readouterr().out  # noqa: E731
        await asyncio.to_thread(wait_until, is_tried_again, within_s=20, what="the broken one to be tried again")
        await services.background.stop()

    asyncio.run(rounds())


def test_a_batch_that_ended_again_is_looked_for_again(database: Database, settings: ApiSettings) -> None:
    job = ended_batch(database)
    asyncio.run(write_batch_files(services_of(database, settings), job))
    assert database.read(lambda uow: uow.batches.without_files(limit=10)) == []
    age(database, [job.id], -1)
    assert [one.id for one in database.read(lambda uow: uow.batches.without_files(limit=10))] == [job.id]


def test_jobs_that_are_no_batches_are_not_read_for_it(sqlite_url: str) -> None:
    database = open_database(sqlite_url)
    [plan] = plans(database, lambda uow: uow.batches.without_files(limit=10))
    database.close()
    assert "ix_jobs_batch" in plan, plan


def test_of_results_that_were_purged_the_batch_says_so(
    database: Database, settings: ApiSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ended_batch(database, days_ago=31)
    purge_all(database, results=30)
    asyncio.run(write_batch_files(services_of(database, settings), job))
    shown: dict[str, Any] = batch_json(found(database, job))
    assert (shown["status"], shown["errors"]["data"][0]["code"]) == ("failed", "results_gone")
    assert "damaged" not in capsys.readouterr().out
