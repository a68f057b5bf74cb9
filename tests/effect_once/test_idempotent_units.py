"""Every unit of work may run again after a commit whose answer was lost, and has its effect once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa

from models_store.store import ModelStore
from ondol.broker.wake import WakeBus
from ondol.contract.errors import DatabaseUnavailable, StaleAttempt
from ondol.contract.fine_tune import FineTuneOptions
from ondol.contract.model_spec import SPEC_FILE, parse_model_spec
from ondol.contract.states import JobState
from ondol.sql.database import Database
from ondol.sql.records import ClaimedTraining, DtypeRecord, Failure
from ondol.sql.tables import attempts, events, idempotency_keys, jobs, results, sessions, versions
from ondol.sql.unit_of_work import UnitOfWork
from tests.job_fixtures import (
    LIMITS,
    TRAINER,
    completions,
    new_fine_tune,
    new_job,
    open_session,
    open_trainer,
    project_of,
    ring_and_claim,
    ring_and_claim_training,
    submit,
    validate,
)
from tests.servers import ON_POSTGRESQL, RedisServer
from tests.torn_postgres import TornPostgres
from workers.import_job import Imported, ImportRunner
from workers.model_library import ModelLibrary
from workers.training import reporting
from workers.training.plan import BaseVersion, DataFile, DataFiles, TrainPlan
from workers.training.publishing import Publisher, Trained
from workers.training.reporting import Reporter

pytestmark = [pytest.mark.integration, ON_POSTGRESQL]


def test_submitting(database: Database, far: Database, link: TornPostgres) -> None:
    new = [new_job(project_of(database)) for _ in range(5)]
    link.tear()
    far.write(lambda uow: uow.jobs.add_all(new))
    assert (_count(database, jobs), _count(database, events)) == (5, 5)


def test_completing(database: Database, far: Database, link: TornPostgres) -> None:
    job = submit(database, 1)[0]
    claimed = ring_and_claim(database, open_session(database))
    link.tear()
    far.write(lambda uow: uow.attempts.complete(completions(claimed)))
    assert _state(database, job.id) is JobState.SUCCEEDED
    assert (_count(database, results), _count(database, events)) == (1, 3)


def test_a_retryable_failure_is_counted_once(database: Database, far: Database, link: TornPostgres) -> None:
    submit(database, 1)
    claimed = ring_and_claim(database, open_session(database))
    failure = Failure(claimed[0].id, 1, {"code": "x", "message": "y", "param": None}, retry_after_s=0.0)
    link.tear()
    far.write(lambda uow: uow.attempts.fail([failure], max_retries=3))
    row = database.read(lambda uow: uow.conn.execute(sa.select(jobs.c.num_retries, jobs.c.state)).one())
    assert tuple(row) == (1, "queued")


def test_handing_back_and_taking_back(database: Database, far: Database, link: TornPostgres) -> None:
    submit(database, 4)
    session_id = open_session(database)
    ring_and_claim(database, session_id)
    link.tear()
    far.write(lambda uow: uow.attempts.take_back(session_id))
    counted = database.read(lambda uow: uow.conn.execute(sa.select(jobs.c.num_lapses)).scalars().all())
    assert list(counted) == [1, 1, 1, 1]


def test_an_idempotency_key_is_answered_once(database: Database, far: Database, link: TornPostgres) -> None:
    project_id = project_of(database)
    job = new_job(project_id)

    def accept(uow: UnitOfWork) -> tuple[int, bytes] | None:
        found = uow.idempotency.find(project_id, "key", "digest")
        if found is not None:
            return found
        assert uow.idempotency.reserve(project_id, "key", "digest")
        uow.jobs.add_all([job])
        uow.idempotency.answer(project_id, "key", status=202, answer=job.id.encode())
        return 202, job.id.encode()

    link.tear()
    assert far.write(accept) == (202, job.id.encode())
    assert (_count(database, jobs), _count(database, idempotency_keys)) == (1, 1)


def test_opening_a_session_leaves_one_open(database: Database, far: Database, link: TornPostgres) -> None:
    link.tear()
    session_id = open_session(far)
    still_open = sa.select(sessions.c.id).where(sessions.c.ended_at.is_(None))
    assert database.read(lambda uow: uow.conn.execute(still_open).scalars().all()) == [session_id]


def test_publishing_makes_one_version(database: Database, far: Database, link: TornPostgres) -> None:
    job = submit(database, 1)[0]
    claimed = ring_and_claim(database, open_session(database))

    def publish(uow: UnitOfWork) -> str:
        version = uow.models.publish(
            project_id=job.project_id,
            name="tiny",
            task="embedding",
            manifest_digest="0" * 64,
            size_bytes=1,
            spec={},
            job_id=job.id,
            attempt=1,
            lineage={},
        ).version
        if not uow.attempts.complete(completions(claimed)):
            raise StaleAttempt("overtaken")
        return version.ref

    link.tear()
    with pytest.raises(StaleAttempt):
        far.write(publish)
    assert _count(database, versions) == 1
    assert _state(database, job.id) is JobState.SUCCEEDED


@pytest.mark.parametrize("is_cut_off", [False, True])
def test_a_fine_tune_that_was_published_says_so_though_the_answer_was_lost(
    database: Database,
    far: Database,
    link: TornPostgres,
    redis_server: RedisServer,
    tiny_version: Path,
    tmp_path: Path,
    *,
    is_cut_off: bool,
) -> None:
    """`is_cut_off`: the database stays away for longer than a unit of work is tried."""
    job = claimed_training(database)
    wake = WakeBus(redis_server.url)
    store = ModelStore(f"file://{tmp_path / 'store'}")
    publisher = Publisher(database=far, store=store, wake=wake, worker=TRAINER)
    trained = Trained(
        {"folder": str(tiny_version), "metrics": {"accuracy": 1.0}, "best_step": 3, "step": 4},
        train_plan(job.id, tmp_path, output_name="late", alias="production"),
        alias_seen=None,
        timings={},
    )
    manifest = publisher.store_files(trained)
    link.tear(then_refuse=is_cut_off)
    if is_cut_off:
        with pytest.raises(DatabaseUnavailable):
            publisher.record(job, trained, manifest)
        link.let_in()
    published = publisher.record(job, trained, manifest)
    wake.close()
    assert (published.version.ref, published.is_alias_moved, published.alias_points_to) == ("late:1", True, "late:1")
    assert _count(database, versions) == 1
    assert _state(database, job.id) is JobState.SUCCEEDED


def test_an_import_that_was_published_says_so_though_the_answer_was_lost(
    database: Database,
    far: Database,
    link: TornPostgres,
    redis_server: RedisServer,
    tiny_version: Path,
    tmp_path: Path,
) -> None:
    submit(database, 1)
    [job] = ring_and_claim(database, open_session(database))
    wake = WakeBus(redis_server.url)
    store = ModelStore(f"file://{tmp_path / 'store'}")
    runner = ImportRunner(
        database=far,
        store=store,
        library=cast(ModelLibrary, None),  # no device is asked here
        wake=wake,
        staging=tmp_path / "staging",
        worker="cpu0@test",
    )
    manifest = store.publish_folder(tiny_version, "late")
    spec = parse_model_spec((tiny_version / SPEC_FILE).read_bytes(), ref="late")
    probed = DtypeRecord("0" * 64, "cpu", "torch", "float32", {}, is_packed=True)
    link.tear()
    assert runner._publish(job, "late", Imported(spec, manifest, probed), 0.1) == "late:1"
    wake.close()
    assert _count(database, versions) == 1
    assert _state(database, job.id) is JobState.SUCCEEDED


def claimed_training(database: Database) -> ClaimedTraining:
    """A fine-tune whose files were good, claimed to be trained."""
    project_id = project_of(database)
    database.write(lambda uow: uow.jobs.add_all([new_fine_tune(project_id)]))
    session_id = open_trainer(database)
    [check] = ring_and_claim_training(database, session_id)
    validate(database, check)
    [job] = ring_and_claim_training(database, session_id)
    return job


def train_plan(job_id: str, folder: Path, **options: Any) -> TrainPlan:
    """A plan that nobody follows: its training has ended."""
    return TrainPlan(
        job_id=job_id,
        attempt=1,
        base=BaseVersion("tiny:1", folder),
        files=DataFiles(DataFile(folder / "train.csv", "train.csv")),
        options=FineTuneOptions.model_validate({"train_file": "file_" + "0" * 26, **options}),
        work_dir=folder,
    )


def test_choosing_names_each_job_in_one_message(database: Database, far: Database, link: TornPostgres) -> None:
    submit(database, 100)
    open_session(database)
    link.tear()
    far.write(lambda uow: uow.ringing.choose(LIMITS))
    rung = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.message_id.is_not(None))
    assert database.read(lambda uow: uow.conn.execute(rung).scalar_one()) == 100
    assert _count(database, attempts) == 0


def test_what_a_training_reports_is_told_once(
    database: Database, far: Database, link: TornPostgres, redis_server: RedisServer
) -> None:
    fine_tune = new_fine_tune(project_of(database))
    database.write(lambda uow: uow.jobs.add_all([fine_tune]))
    [job] = ring_and_claim_training(database, open_trainer(database))
    wake = WakeBus(redis_server.url)
    reporter = Reporter(far, wake, job)
    link.tear()
    reporter.say("training begins")
    reporter.say("training goes on")
    wake.close()
    told = database.read(lambda uow: uow.events.after(job.id, 0))
    assert [e.data["message"] for e in told if e.type == "message"] == ["training begins", "training goes on"]


def test_what_a_training_reports_is_told_once_after_two_failures(
    database: Database,
    far: Database,
    link: TornPostgres,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A commit whose answer is lost, and then one that is rolled back."""
    monkeypatch.setattr(reporting, "_RETRY_S", 0.0)
    fine_tune = new_fine_tune(project_of(database))
    database.write(lambda uow: uow.jobs.add_all([fine_tune]))
    [job] = ring_and_claim_training(database, open_trainer(database))
    wake = WakeBus(redis_server.url)
    reporter = Reporter(far, wake, job)
    link.tear(then_refuse=True)
    reporter.say("training begins")
    reporter.say("training goes on")
    link.cut()
    reporter.flush()
    assert reporter.has_unwritten
    link.let_in()
    reporter.flush()
    wake.close()
    told = database.read(lambda uow: uow.events.after(job.id, 0))
    assert [e.data["message"] for e in told if e.type == "message"] == ["training begins", "training goes on"]


def _count(database: Database, table: sa.Table) -> int:
    return database.read(lambda uow: int(uow.conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()))


def _state(database: Database, job_id: str) -> JobState:
    return database.read(lambda uow: uow.jobs.states_of([job_id]))[job_id][0]
