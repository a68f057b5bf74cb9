"""PostgreSQL builds the indexes of a migration while others read and write, and begins anew what a crash left half."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from ondol.contract.errors import DatabaseUnavailable
from ondol.sql import migrate
from ondol.sql.tables import metadata
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

LAST_OLD = "0006"
LIMIT_S = 30
NUM_JOBS = 50
BUILDING = sa.text(
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    " AND query LIKE '%INDEX CONCURRENTLY ix_jobs_%'"
)
INDEXES = sa.text(
    "SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = current_schema()"
)


@pytest.fixture
def engine(postgresql_url: str) -> Iterator[sa.Engine]:
    """Connections on which whoever waits for a lock gives up after half a second."""
    options = "-c lock_timeout=500 -c statement_timeout=5000"
    engine = sa.create_engine(postgresql_url, connect_args={"options": options}, poolclass=sa.NullPool)
    yield engine
    engine.dispose()


@pytest.fixture
def old_database(
    postgresql_url: str, engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, sa.Engine]:
    """A database of schema 0006 with jobs."""
    folder = tmp_path / "migrations"
    shutil.copytree(Path(migrate.__file__).parent / "migrations", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (folder / "versions").glob("[0-9]*.py"):
        if path.name[:4] > LAST_OLD:
            path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "_MIGRATIONS", folder)
        migrate.upgrade(postgresql_url)
    assert migrate.current(postgresql_url) == LAST_OLD
    with engine.begin() as conn:
        conn.execute(sa.text("INSERT INTO projects (id, name, created_at) VALUES ('prj_1', 'default', 0)"))
        for number in range(NUM_JOBS):
            add_job(conn, f"job_{number}")
    return postgresql_url, engine


def add_job(conn: sa.Connection, job_id: str) -> None:
    """A waiting job, as a process of the release before writes it."""
    conn.execute(
        sa.text(
            "INSERT INTO jobs (id, project_id, kind, state, priority, options, job_metadata, num_inputs, num_done,"
            " estimated_tokens, created_at, run_after, attempt, num_retries, num_lapses, num_losses, is_alone,"
            " event_seq, is_call, is_sharded) VALUES (:id, 'prj_1', 'embedding', 'queued', 'normal', '{}', '{}', 1, 0,"
            " 8, 0, 0, 0, 0, 0, 0, false, 1, false, false)"
        ),
        {"id": job_id},
    )


@contextmanager
def a_writer_that_takes_its_time(engine: sa.Engine, job_id: str) -> Iterator[None]:
    """A transaction that has written to `jobs` and is not over: an index waits for it."""
    with engine.connect() as conn:
        add_job(conn, job_id)
        yield
        conn.commit()


def builder(engine: sa.Engine) -> int | None:
    """The server process that waits while it builds an index of `jobs`, or drops a half one."""
    with engine.connect() as conn:
        found: int | None = conn.execute(BUILDING).scalars().first()
        return found


def indexes(engine: sa.Engine) -> dict[str, bool]:
    """Every index, and whether queries may use it."""
    with engine.connect() as conn:
        return {row.relname: row.indisvalid for row in conn.execute(INDEXES)}


def read_and_write(engine: sa.Engine, job_id: str) -> int:
    """What others do meanwhile; an error where one of them waits for a lock. How many jobs there are."""
    with engine.begin() as conn:
        add_job(conn, job_id)
        conn.execute(sa.text("UPDATE jobs SET attempt = attempt + 1 WHERE id = 'job_0'"))
        conn.execute(sa.text("DELETE FROM jobs WHERE id = :id"), {"id": job_id})
        return int(conn.execute(sa.text("SELECT count(*) FROM jobs WHERE state = 'queued'")).scalar_one())


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def wait_for_builder(engine: sa.Engine, upgrade: Future[None]) -> int:
    def found() -> int | None:
        assert not upgrade.done(), upgrade.exception() or "it has built the index without waiting"
        return builder(engine)

    pid = wait_until(found, within_s=LIMIT_S, what="an index to wait for the writer")
    assert pid is not None
    return pid


def test_others_read_and_write_while_indexes_are_built(
    old_database: tuple[str, sa.Engine], background: ThreadPoolExecutor
) -> None:
    url, engine = old_database
    with a_writer_that_takes_its_time(engine, "job_slow"):
        upgrade = background.submit(migrate.upgrade, url)
        wait_for_builder(engine, upgrade)
        beside = background.submit(migrate.upgrade, url)  # as `ondol up` does beside `ondol db upgrade`
        for number in range(20):
            assert read_and_write(engine, f"job_beside_{number}") >= NUM_JOBS
        assert not upgrade.done() and not beside.done()
    upgrade.result(LIMIT_S)
    beside.result(LIMIT_S)
    check_is_whole(url, engine)


def test_an_index_that_a_crash_left_half_is_built_again(
    old_database: tuple[str, sa.Engine], background: ThreadPoolExecutor
) -> None:
    url, engine = old_database
    for number in range(2):
        with a_writer_that_takes_its_time(engine, f"job_slow_{number}"):
            upgrade = background.submit(migrate.upgrade, url)
            pid = wait_for_builder(engine, upgrade)
            with engine.begin() as conn:
                conn.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            with pytest.raises(DatabaseUnavailable):
                upgrade.result(LIMIT_S)
        assert [name for name, is_valid in indexes(engine).items() if not is_valid] == ["ix_jobs_waiting_new"]
        assert migrate.current(url) == LAST_OLD
    migrate.upgrade(url)
    check_is_whole(url, engine)


def test_a_backup_of_a_half_done_upgrade_is_brought_up_to_date(old_database: tuple[str, sa.Engine]) -> None:
    url, engine = old_database
    with engine.begin() as conn:  # what was built by itself before the crash, and is in the backup
        conn.execute(sa.text("CREATE INDEX ix_jobs_waiting_new ON jobs (priority, project_id, run_after, id)"))
        conn.execute(sa.text("CREATE INDEX ix_files_created_at ON files (created_at)"))
        migrate.upgrade_within(conn)
    check_is_whole(url, engine)


def test_the_indexes_come_out_as_on_an_empty_database(old_database: tuple[str, sa.Engine]) -> None:
    url, engine = old_database
    migrate.upgrade(url)
    with engine.connect() as conn:
        found = sa.inspect(conn)
        for table in metadata.sorted_tables:
            wanted = {str(index.name): [column.name for column in index.columns] for index in table.indexes}
            have = {str(one["name"]): one["column_names"] for one in found.get_indexes(table.name)}
            assert wanted.items() <= have.items(), table.name


def check_is_whole(url: str, engine: sa.Engine) -> None:
    """The newest schema; no index is half, none has the name of the moment."""
    assert migrate.current(url) == migrate.newest()
    found = indexes(engine)
    assert all(found.values())
    assert "ix_jobs_waiting" in found and "ix_jobs_open_fine_tunes" in found and "ix_jobs_waiting_new" not in found
