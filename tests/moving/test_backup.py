"""A backup is of one moment and whole or not there; a restore gives it back, and refuses what would lose something."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from ondol.cli.database import app
from ondol.contract.errors import Conflict, InvalidPayload, NotFound
from ondol.contract.states import JobState
from ondol.control.backup import ToolMissing, back_up
from ondol.control.restoring import restore
from ondol.sql import migrate
from ondol.sql.database import Database
from tests.job_fixtures import open_database, open_session, project_of, ring_and_claim, submit
from tests.servers import PostgresServer

pytestmark = pytest.mark.integration


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    """Two jobs that run and one that waits."""
    database = open_database(sqlite_url)
    submit(database, 2)
    assert len(ring_and_claim(database, open_session(database))) == 2
    submit(database, 1)
    yield database
    database.close()


def states_in(url: str) -> list[JobState]:
    """Of all jobs, newest first."""
    found = Database(url, pool_size=1)
    try:
        return [job.state for job in found.read(lambda uow: uow.jobs.page(project_of(found))[0])]
    finally:
        found.close()


def submit_elsewhere(url: str) -> None:
    """A job that a restore gives up."""
    found = Database(url, pool_size=1)
    submit(found, 1)
    found.close()


def test_a_backup_is_of_one_moment_and_private(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    done = back_up(database.url, file)
    submit(database, 5)
    assert done.revision == migrate.newest() and done.size_bytes == file.stat().st_size
    assert file.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in tmp_path.glob("*backup*")) == ["backup.db"], "one file, and nothing beside it"
    restored = f"sqlite:///{tmp_path / 'new' / 'ondol.db'}"
    again = restore(restored, file)
    assert again.num_handed_back == 2
    assert states_in(restored) == [JobState.QUEUED] * 3
    with pytest.raises(Conflict, match="--force"):
        back_up(database.url, file)
    back_up(database.url, file, overwrite=True)


def test_a_restore_refuses_a_database_that_is_in_use_or_not_empty(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    back_up(database.url, file)
    with pytest.raises(Conflict, match="in use by worker cpu0@test"):
        restore(database.url, file)
    [session] = database.read(lambda uow: uow.sessions.open_sessions())
    database.write(lambda uow: uow.sessions.stop(session.id, reason="stopped"))
    with pytest.raises(Conflict, match="not empty, it holds jobs"):
        restore(database.url, file)
    submit(database, 4)
    restore(database.url, file, force=True)
    assert len(states_in(database.url)) == 3
    assert submit(database, 1), "a process that had it open goes on with what it is now"


def test_an_older_schema_is_brought_up_to_date_and_a_newer_one_refused(database: Database, tmp_path: Path) -> None:
    file, target = tmp_path / "backup.db", f"sqlite:///{tmp_path / 'new.db'}"
    back_up(database.url, file)
    with sqlite3.connect(file) as backup:
        backup.execute("UPDATE alembic_version SET version_num = '9999'")
    backup.close()
    with pytest.raises(InvalidPayload, match="newer than this release knows"):
        restore(target, file)
    assert not (tmp_path / "new.db").exists()


@pytest.mark.parametrize("content", [b"", b"PGDMP...", b"SQLite format 3\x00" + b"x" * 5_000])
def test_what_is_no_backup_is_refused_and_nothing_is_made(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "backup.db"
    file.write_bytes(content)
    with pytest.raises(InvalidPayload, match=r"no SQLite database|damaged|no backup"):
        restore(f"sqlite:///{tmp_path / 'new.db'}", file)
    assert not (tmp_path / "new.db").exists()
    with pytest.raises(NotFound, match="there is no file"):
        restore(f"sqlite:///{tmp_path / 'new.db'}", tmp_path / "elsewhere")


def test_a_damaged_backup_is_seen_before_anything_is_lost(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    back_up(database.url, file)
    pages = bytearray(file.read_bytes())
    for start in range(8 * 4096, len(pages), 4096):
        pages[start : start + 64] = os.urandom(64)
    file.write_bytes(pages)
    with pytest.raises(InvalidPayload, match="damaged"):
        restore(database.url, file, force=True)
    assert len(states_in(database.url)) == 3


def test_without_postgresqls_programs_the_command_to_run_is_named(
    postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_database(postgresql_url).close()
    url = sa.make_url(postgresql_url).set(password="a-secret").render_as_string(hide_password=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match=r"pg_dump --dbname .*postgresql://.* --file .*backup\.dump$") as caught:
        back_up(postgresql_url, tmp_path / "backup.dump")
    assert "partial" not in caught.value.message
    (tmp_path / "backup.dump").write_bytes(b"PGDMP")
    with pytest.raises(ToolMissing, match="pg_restore --dbname") as caught:
        restore(url, tmp_path / "backup.dump", force=True)
    assert "a-secret" not in caught.value.message


def test_postgresql_comes_back_by_its_own_programs(
    postgresql_url: str, postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_database(postgresql_url)
    folder = database.read(
        lambda uow: uow.conn.execute(sa.text("SELECT setting FROM pg_config() WHERE name = 'BINDIR'")).scalar_one()
    )
    if not (Path(folder) / "pg_dump").exists():
        pytest.skip("the tests' PostgreSQL runs elsewhere, and its pg_dump is not here")
    monkeypatch.setenv("PATH", folder, prepend=":")
    submit(database, 2)
    ring_and_claim(database, open_session(database))
    file = tmp_path / "ondol.dump"
    back_up(postgresql_url, file)
    submit(database, 3)
    with pytest.raises(Conflict, match="in use"):
        restore(postgresql_url, file)
    database.close()
    restored = postgres_server.create_database()
    try:
        assert restore(restored, file).num_handed_back == 2
        assert states_in(restored) == [JobState.QUEUED] * 2
        submit_elsewhere(restored)
        assert restore(restored, file, force=True).num_handed_back == 2
        assert len(states_in(restored)) == 2
    finally:
        postgres_server.drop_database(restored)


def test_the_command_says_what_it_did(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONDOL_DATABASE_URL", database.url)
    runner = CliRunner()
    done = runner.invoke(app, ["backup", str(tmp_path / "b.db"), "--json"])
    assert done.exit_code == 0 and '"bytes":' in done.output
    target = f"sqlite:///{tmp_path / 'moved.db'}"
    moved = runner.invoke(app, ["copy", target])
    assert moved.exit_code == 0 and "jobs: 3 rows" in moved.output and "2 jobs that ran wait again" in moved.output
    assert "takes writes again" in runner.invoke(app, ["reopen"]).output
