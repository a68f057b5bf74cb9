"""What is over its time is deleted for good, in small steps found by an index, and nothing else is."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import sqlalchemy as sa

from ondol.contract.errors import FileGone, FileNotFound, JobGone, JobNotFound, PartGone
from ondol.contract.states import JobState
from ondol.control.purging import DAY_S, Purger, Retention
from ondol.sql import purging
from ondol.sql.database import Database
from ondol.sql.purge_tables import gone, store_garbage
from ondol.sql.purging import Part, ended_query
from ondol.sql.tables import attempts, events, files, job_inputs, jobs, notices, results, sessions, usage
from ondol.sql.unit_of_work import UnitOfWork
from tests.job_fixtures import new_fine_tune, new_job, project_of, submit
from tests.retention.aged import (
    age,
    count,
    ended_jobs,
    purge_all,
    run_all,
    sharded_job,
    state_of,
    uploaded,
)

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(("part", "table"), [(Part.INPUTS, job_inputs), (Part.RESULTS, results), (Part.EVENTS, events)])
def test_each_part_goes_at_its_own_age_and_says_when_it_went(database: Database, part: Part, table: sa.Table) -> None:
    [old] = ended_jobs(database, 1, days_ago=8)
    [young] = ended_jobs(database, 1, days_ago=6)
    [waiting] = submit(database, 1)
    rest = {one: count(database, one) for one in (job_inputs, results, events, jobs) if one is not table}
    assert purge_all(database, **{part.value: 7}) == 1
    assert count(database, table, table.c.job_id == old.id) == 0
    assert count(database, table, table.c.job_id == young.id) > 0
    assert {one: count(database, one) for one in rest} == rest
    with pytest.raises(PartGone, match=r"were deleted on 20\d\d-\d\d-\d\d \d\d:\d\d UTC") as caught:
        database.read(lambda uow: uow.purging.check_part(old.id, part))
    assert caught.value.code == f"{part.value}_gone"
    database.read(lambda uow: uow.purging.check_part(young.id, part))
    assert state_of(database, old) is JobState.SUCCEEDED and state_of(database, waiting) is JobState.QUEUED
    assert purge_all(database, **{part.value: 7}) == 0


def test_jobs_go_with_all_that_is_theirs_and_usage_stays(database: Database) -> None:
    ended = ended_jobs(database, 3, days_ago=91)
    project_id = ended[0].project_id
    database.write(
        lambda uow: uow.usage.add(project_id=project_id, model_ref="tiny:1", num_calls=1, num_inputs=1, num_tokens=3)
    )
    [kept] = ended_jobs(database, 1, days_ago=89)
    assert purge_all(database, jobs=90) == 3
    for table in (events, attempts, results, job_inputs):
        assert count(database, table, table.c.job_id != kept.id) == 0
        assert count(database, table, table.c.job_id == kept.id) > 0
    assert count(database, usage) == 1
    with pytest.raises(JobGone, match="ONDOL_KEEP_JOBS_DAYS"):
        database.read(lambda uow: uow.jobs.get(ended[0].id, project_id))
    with pytest.raises(JobNotFound) as caught:
        database.read(lambda uow: uow.jobs.get(ended[0].id, "prj_of_somebody_else"))
    assert not isinstance(caught.value, JobGone), "nobody learns of another project's jobs"


def test_a_large_job_goes_in_steps_of_a_bounded_number_of_rows(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "MAX_ROWS", 4)
    job = sharded_job(database, 10, days_ago=91)
    [beside] = ended_jobs(database, 1, days_ago=91)
    num_rows = []
    while True:
        step = database.write(lambda uow: uow.purging.purge_part(Part.RESULTS, older_than_s=90 * DAY_S))
        num_rows.append(count(database, results))
        with pytest.raises(PartGone):
            database.read(lambda uow: uow.purging.check_part(job.id, Part.RESULTS))
        if not step.may_be_more:
            break
    assert max(before - after for before, after in itertools.pairwise(num_rows)) <= 4
    assert num_rows[-1] == 0
    assert purge_all(database, jobs=90) == 2
    for table in (jobs, events, attempts, job_inputs):
        assert count(database, table) == 0
    garbage = database.read(lambda uow: uow.purging.garbage())
    assert garbage == [f"results/{job.id}.{number:06d}/1.bin" for number in range(10)]
    assert beside.id


def test_the_files_of_a_job_are_garbage_from_the_very_commit_that_deletes_its_rows(database: Database) -> None:
    project_id = project_of(database)
    tune = new_fine_tune(project_id)
    database.write(lambda uow: uow.jobs.add_all([tune]))
    database.write(lambda uow: uow.jobs.cancel(tune.id, project_id))
    age(database, [tune.id], 91)

    def purge_and_die(uow: UnitOfWork) -> None:
        uow.purging.purge_jobs(older_than_s=90 * DAY_S)
        raise KeyError("killed before the commit")

    with pytest.raises(KeyError):
        database.write(purge_and_die)
    assert count(database, store_garbage) == count(database, gone) == 0 and count(database, jobs) == 1
    database.write(lambda uow: uow.purging.purge_jobs(older_than_s=90 * DAY_S))
    assert database.read(lambda uow: uow.purging.garbage()) == [f"checkpoints/{tune.id}"]


def test_whoever_is_still_to_be_told_of_an_end_finds_what_to_tell(database: Database) -> None:
    job = dataclasses.replace(new_job(project_of(database)), webhook="https://example.org/told")
    database.write(lambda uow: uow.jobs.add_all([job]))
    run_all(database)
    age(database, [job.id], 100)
    days = dict.fromkeys(("inputs", "results", "events", "jobs"), 1.0)
    assert purge_all(database, **days) == 0
    database.write(lambda uow: uow.conn.execute(sa.update(notices).values(status="accepted")))
    assert purge_all(database, **days) == 4, "each part, then the job"
    assert count(database, notices) == count(database, jobs) == 0


def test_a_failed_job_without_its_inputs_is_not_retried(database: Database) -> None:
    [job] = submit(database, 1)
    failed = sa.update(jobs).values(state="failed", finished_at=jobs.c.created_at - 31 * DAY_S)
    database.write(lambda uow: uow.conn.execute(failed))
    database.write(lambda uow: uow.purging.purge_part(Part.INPUTS, older_than_s=30 * DAY_S))
    with pytest.raises(PartGone, match="inputs"):
        database.write(lambda uow: uow.jobs.retry(job.id, job.project_id))
    assert state_of(database, job) is JobState.FAILED


def test_a_failed_job_is_retried_though_results_of_its_time_are_gone(database: Database) -> None:
    [job] = submit(database, 1)
    failed = sa.update(jobs).values(state="failed", finished_at=jobs.c.created_at - 31 * DAY_S)
    database.write(lambda uow: uow.conn.execute(failed))
    assert purge_all(database, results=30) == 1
    database.write(lambda uow: uow.jobs.retry(job.id, job.project_id))
    run_all(database)
    assert state_of(database, job) is JobState.SUCCEEDED
    database.read(lambda uow: uow.purging.check_part(job.id, Part.RESULTS))
    assert count(database, results) == 1
    age(database, [job.id], 31)
    assert purge_all(database, results=30) == 1 and count(database, results) == 0


def test_a_retried_job_shows_its_new_events(database: Database) -> None:
    [job] = submit(database, 1)
    failed = sa.update(jobs).values(state="failed", finished_at=jobs.c.created_at - 31 * DAY_S)
    database.write(lambda uow: uow.conn.execute(failed))
    purge_all(database, events=30)
    database.write(lambda uow: uow.jobs.retry(job.id, job.project_id))
    database.read(lambda uow: uow.purging.check_part(job.id, Part.EVENTS))
    run_all(database)
    told = database.read(lambda uow: uow.events.after(job.id, 0))
    assert [event.data["to"] for event in told] == ["queued", "running", "succeeded"]


def test_a_job_that_was_retried_and_ends_anew_is_purged_by_its_new_end(database: Database) -> None:
    ended_jobs(database, 2, days_ago=50)
    assert purge_all(database, events=30) == 2
    [job] = ended_jobs(database, 1, days_ago=31)
    assert purge_all(database, events=30) == 1
    assert count(database, events, events.c.job_id == job.id) == 0


def test_files_go_when_they_are_over_their_time_and_nobody_needs_them(database: Database) -> None:
    old, young = uploaded(database, days_ago=8), uploaded(database, days_ago=6)
    expired = uploaded(database, days_ago=1, expires_after_s=-1.0)
    needed, trained_on = uploaded(database, days_ago=8), uploaded(database, days_ago=8)
    project_id = project_of(database)
    reader = dataclasses.replace(new_job(project_id), input_file_id=needed)
    tune = new_fine_tune(project_id, train_file=trained_on)
    database.write(lambda uow: uow.jobs.add_all([reader, tune]))
    assert purge_all(database, files=7) == 2
    assert set(database.read(lambda uow: uow.files.existing([old, young, expired, needed, trained_on]))) == {
        young,
        needed,
        trained_on,
    }
    assert database.read(lambda uow: uow.purging.garbage()) == sorted([f"files/{old}", f"files/{expired}"])
    with pytest.raises(FileGone, match="upload it again"):
        database.read(lambda uow: uow.files.get(old, project_id))
    with pytest.raises(FileNotFound):
        database.write(lambda uow: uow.files.hold(old, project_id))
    for job in (reader, tune):
        database.write(lambda uow, job_id=job.id: uow.jobs.cancel(job_id, project_id))  # type: ignore[misc]  # bound at definition
    assert purge_all(database, files=7) == 2
    assert count(database, files) == 1


def test_sessions_and_traces_do_not_stay_for_ever(database: Database) -> None:
    ended_jobs(database, 1, days_ago=91)
    database.write(lambda uow: uow.sessions.stop(uow.sessions.open_sessions()[0].id, reason="stopped"))
    long_ago = 100 * DAY_S
    database.write(lambda uow: uow.conn.execute(sa.update(sessions).values(ended_at=sessions.c.ended_at - long_ago)))
    purge_all(database, jobs=90)
    assert count(database, sessions) == 0 and count(database, gone) == 1
    database.write(lambda uow: uow.conn.execute(sa.update(gone).values(gone_at=gone.c.gone_at - long_ago)))
    assert purge_all(database) == 1
    assert count(database, gone) == 0


def test_one_round_takes_a_little_and_a_stale_leader_nothing(database: Database) -> None:
    ended_jobs(database, 5, days_ago=91)
    stale = Purger(database, retention=Retention(jobs_s=DAY_S), lead=lambda _: False)
    assert stale.purge() == 0 and count(database, jobs) == 5
    hasty = Purger(database, retention=Retention(jobs_s=DAY_S, round_s=0.0), lead=lambda _: True)
    assert hasty.purge() == 0
    acting = Purger(database, retention=Retention(jobs_s=DAY_S, round_s=60.0, pause_s=3600.0), lead=lambda _: True)
    assert acting.purge() == 5
    ended_jobs(database, 1, days_ago=91)
    assert acting.purge() == 0, "it rests once nothing was left"


def test_the_index_finds_what_is_over_its_time(database: Database) -> None:
    _many_ended_jobs(database, 8_000)
    database.write(lambda uow: uow.conn.execute(sa.text("ANALYZE")))
    for beginning in (None, (5_000.0, "job_5000")):
        plan = database.read(lambda uow, b=beginning: _plan(uow, ended_query(6_000.0, beginning=b)))  # type: ignore[misc]  # bound at definition
        assert "ix_jobs_finished" in plan, plan
        assert "SCAN JOBS\n" not in f"{plan.upper()}\n" and "SEQ SCAN ON JOBS" not in plan.upper(), plan
    unfinished = sa.select(jobs.c.id).where(
        jobs.c.kind == sa.literal_column("'fine-tune'"), jobs.c.finished_at.is_(None)
    )
    assert "ix_jobs_open_fine_tunes" in database.read(lambda uow: _plan(uow, unfinished))


def _many_ended_jobs(database: Database, num: int) -> None:
    job = dataclasses.replace(new_job(project_of(database)), id="job_0000")
    database.write(lambda uow: uow.jobs.add_all([job]))

    def multiply(uow: UnitOfWork) -> None:
        row = dict(uow.conn.execute(sa.select(jobs)).mappings().one())
        rows = [{**row, "id": f"job_{i}", "state": "succeeded", "finished_at": float(i)} for i in range(1, num)]
        uow.conn.execute(sa.insert(jobs), rows)

    database.write(multiply)


def _plan(uow: UnitOfWork, query: sa.Select[tuple[str]]) -> str:
    text = query.compile(dialect=uow.conn.dialect, compile_kwargs={"literal_binds": True})
    how = "EXPLAIN QUERY PLAN" if uow.is_sqlite else "EXPLAIN"
    return "\n".join(str(tuple(row)) for row in uow.conn.execute(sa.text(f"{how} {text}")))
