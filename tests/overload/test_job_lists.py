"""Lists of jobs: every filter gives what it says, by an index or in short reads, however many a project has had."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from api import job_search
from api.database import AsyncDatabase
from api.job_search import find_jobs
from ondol.contract.errors import InvalidPayload
from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState
from ondol.sql.database import Database
from ondol.sql.job_pages import EVERY_JOB, JobFilter, oldest_open
from ondol.sql.tables import files, jobs
from ondol.sql.unit_of_work import UnitOfWork
from tests.overload.projects import make_project, wait, wait_sharded

pytestmark = pytest.mark.integration

NUM_ENDED = 2_000
EMBEDDING, FINE_TUNE, IMPORT = JobKind.EMBEDDING, JobKind.FINE_TUNE, JobKind.IMPORT


@pytest.fixture
def project_id(database: Database) -> str:
    """A project with thousands of jobs that ended well, a few of every other sort, and a neighbour with as many."""
    mine = make_project(database, "mine")
    both = (mine, make_project(database, "other"))
    for project in both:
        wait(database, project, NUM_ENDED)
    database.write(lambda uow: uow.conn.execute(_ended()))
    for project in both:
        database.write(lambda uow, of=project: _make_odd(uow, of))  # type: ignore[misc]  # bound at definition
        wait(database, project, 5)
    database.write(lambda uow: uow.conn.execute(sa.text("ANALYZE")))
    return mine


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (JobFilter(FINE_TUNE), "ix_jobs_rare"),
        (JobFilter(IMPORT), "ix_jobs_rare"),
        (JobFilter(FINE_TUNE, JobState.FAILED), "ix_jobs_rare"),
        (JobFilter(state=JobState.PAUSED), "ix_jobs_rare"),
        (JobFilter(state=JobState.VALIDATING_FILES), "ix_jobs_rare"),
        (JobFilter(state=JobState.FAILED), "ix_jobs_failed"),
        (JobFilter(state=JobState.CANCELLED), "ix_jobs_cancelled"),
        (JobFilter(created_after=4e9), "ix_jobs_project"),
        (EVERY_JOB, "ix_jobs_project"),
    ],
)
def test_jobs_that_are_few_are_found_by_their_index(
    database: Database, project_id: str, wanted: JobFilter, index: str
) -> None:
    assert wanted.is_of_few
    [plan] = plans(database, lambda uow: uow.jobs.page(project_id, wanted, after="job_z"))
    assert index in plan or (index == "ix_jobs_rare" and "ix_jobs_failed" in plan), plan
    if wanted.created_after is not None:
        assert "id>?" in plan or "(id)::text >= 'job_" in plan, plan


def test_files_of_a_project_are_found_by_their_index(database: Database) -> None:
    mine, other = make_project(database, "mine"), make_project(database, "other")
    row = {"filename": "a", "purpose": "batch", "size_bytes": 1, "sha256": "0", "created_at": 1.0, "expires_at": None}
    rows = [{"id": f"file_{i:026}", "project_id": other if i % 100 else mine, **row} for i in range(3_000)]
    database.write(lambda uow: uow.conn.execute(sa.insert(files), rows))
    database.write(lambda uow: uow.conn.execute(sa.text("ANALYZE")))
    [plan] = plans(database, lambda uow: uow.files.page(mine, limit=20), table="files")
    assert "ix_files_project" in plan, plan


def test_what_is_open_is_found_by_what_is_open(database: Database, project_id: str) -> None:
    [plan] = plans(database, lambda uow: oldest_open(uow, project_id))
    assert "SCAN jobs" not in plan and "Seq Scan" not in plan, plan
    assert "jobs_pkey" not in plan and "pk_jobs" not in plan and "sqlite_autoindex" not in plan, plan
    assert "ix_jobs_project" not in plan, plan


def test_the_oldest_open_job_is_no_younger_than_any(database: Database) -> None:
    empty, mine = make_project(database, "empty"), make_project(database, "mine")
    assert database.read(lambda uow: oldest_open(uow, mine)) is None
    wait(database, mine, 3)
    first = database.read(lambda uow: oldest_open(uow, mine))
    for change in (
        {"state": "running", "session_id": "ses_1"},
        {"message_id": "msg_1"},
        {"kind": "fine-tune"},
        {"kind": "fine-tune", "state": "paused"},
    ):
        database.write(lambda uow, to=change: uow.conn.execute(sa.update(jobs).values(to)))  # type: ignore[misc]  # bound at definition
        assert database.read(lambda uow: oldest_open(uow, mine)) == first, change
        reset = {"state": "queued", "session_id": None, "message_id": None, "kind": "embedding"}
        database.write(lambda uow, to=reset: uow.conn.execute(sa.update(jobs).values(to)))  # type: ignore[misc]  # bound at definition
    database.write(lambda uow: uow.conn.execute(_ended()))
    parent = wait_sharded(database, mine, 2)
    assert database.read(lambda uow: oldest_open(uow, mine)) == parent
    assert database.read(lambda uow: oldest_open(uow, empty)) is None


def test_every_filter_gives_what_it_says_page_by_page(
    database: Database, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_search, "FIRST_ROWS", 300)
    monkeypatch.setattr(job_search, "NEXT_ROWS", 900)
    rows = database.read(lambda uow: _all(uow, project_id))
    assert len(rows) > NUM_ENDED
    times = sorted(row.created_at for row in rows)
    wanted = [
        JobFilter(kind, state, model, since)
        for kind, state, model, since in itertools.product(
            (None, EMBEDDING, FINE_TUNE),
            (None, *JobState),
            (None, "a", "b:1"),
            (None, times[-3]),
        )
        if kind is not None or state is not None or model is not None or since is not None
    ]
    for one in wanted:
        expected = [row.id for row in rows if _fits(row, one)]
        if len(expected) < 60:
            assert asyncio.run(_read_pages(database, project_id, one, limit=7)) == expected, one
        else:
            ids, _ = asyncio.run(_find(database, project_id, one, after=None, limit=50))
            assert ids == expected[:50], one


def test_a_filter_that_would_look_through_too_much_says_so(
    database: Database, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_search, "FIRST_ROWS", 400)
    rare = JobFilter(model_ref="nobody")
    with pytest.raises(InvalidPayload) as refused:
        asyncio.run(_find(database, project_id, rare, after=None, limit=1, limit_s=0.0))
    assert refused.value.code == "filter_too_wide"
    assert asyncio.run(_find(database, project_id, rare, after=None, limit=1)) == ([], False)


def test_what_was_found_in_time_is_given_though_there_may_be_more(
    database: Database, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_search, "FIRST_ROWS", 400)
    rows = database.read(lambda uow: _all(uow, project_id))
    wanted = JobFilter(EMBEDDING, JobState.FAILED)
    expected = [row.id for row in rows if _fits(row, wanted)]
    within = [job_id for job_id in expected if job_id >= rows[399].id]
    assert 0 < len(within) < len(expected)
    for limit in (len(within), len(within) + 1):
        page = asyncio.run(_find(database, project_id, wanted, after=None, limit=limit, limit_s=0.0))
        assert page == (within, True)


def plans(database: Database, look: Any, *, table: str = "jobs") -> list[str]:
    """How the database answers the queries of that table."""
    asked: list[tuple[str, Any]] = []

    def note(conn: sa.Connection, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if f"FROM {table}" in statement:
            asked.append((statement, parameters))

    def explain(uow: UnitOfWork) -> list[str]:
        how = "EXPLAIN QUERY PLAN " if uow.is_sqlite else "EXPLAIN "
        sa.event.listen(uow.conn.engine, "before_cursor_execute", note)
        try:
            look(uow)
        finally:
            sa.event.remove(uow.conn.engine, "before_cursor_execute", note)
        return [
            "\n".join(str(tuple(row)) for row in uow.conn.exec_driver_sql(how + statement, parameters))
            for statement, parameters in asked[:1]
        ]

    return database.read(explain)


async def _read_pages(database: Database, project_id: str, wanted: JobFilter, *, limit: int) -> list[str]:
    found: list[str] = []
    has_more = True
    while has_more:
        ids, has_more = await _find(database, project_id, wanted, after=found[-1] if found else None, limit=limit)
        assert len(ids) == limit or not has_more
        found += ids
    return found


async def _find(
    database: Database, project_id: str, wanted: JobFilter, *, after: str | None, limit: int, limit_s: float = 60.0
) -> tuple[list[str], bool]:
    page, has_more = await find_jobs(
        AsyncDatabase(database), project_id, wanted, after=after, limit=limit, limit_s=limit_s
    )
    return [job.id for job in page], has_more


def _all(uow: UnitOfWork, project_id: str) -> Sequence[sa.Row[Any]]:
    query = sa.select(jobs).where(jobs.c.project_id == project_id, jobs.c.parent_id.is_(None))
    return uow.conn.execute(query.order_by(jobs.c.id.desc())).all()


def _fits(row: sa.Row[Any], wanted: JobFilter) -> bool:
    return (
        wanted.kind in (None, row.kind)
        and wanted.state in (None, row.state)
        and (wanted.model_ref is None or row.model_ref.split(":")[0] == wanted.model_ref or row.model_ref == "b:1")
        and (wanted.model_ref != "a" or row.model_ref.startswith("a:"))
        and (wanted.created_after is None or row.created_at > wanted.created_after)
    )


def _ended() -> sa.Update:
    return sa.update(jobs).values(state="succeeded", finished_at=jobs.c.created_at + 1)


def _make_odd(uow: UnitOfWork, project_id: str) -> None:
    """Every other sort of job, far apart from each other."""
    ids = [row.id for row in _all(uow, project_id)]
    open_again: dict[str, Any] = {"finished_at": None}
    changes: list[dict[str, Any]] = [
        {"state": "failed"},
        {"state": "cancelled"},
        {"kind": "fine-tune"},
        {"kind": "fine-tune", "state": "failed"},
        {"kind": "fine-tune", "state": "paused", **open_again},
        {"kind": "fine-tune", "state": "validating_files", **open_again},
        {"kind": "fine-tune", "state": "running", **open_again},
        {"kind": "import"},
        {"kind": "text-classification", "model_ref": "b:1"},
        {"state": "running", "session_id": "ses_1", **open_again},
        {"state": "queued", "message_id": "msg_1", **open_again},
        {"model_ref": "b:2"},
        {"model_ref": "ab:1", "state": "failed"},
    ]
    for number, (change, place) in enumerate(itertools.product(changes, (11, 1_000, len(ids) - 40))):
        uow.conn.execute(sa.update(jobs).where(jobs.c.id == ids[place + number]).values(change))
