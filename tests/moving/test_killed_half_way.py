"""A restore or a move that fails or is killed half way leaves what was there, and can be begun anew."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from ondol.contract.errors import Conflict
from ondol.contract.states import JobState
from ondol.control.backup import back_up
from ondol.control.moving import move_database
from ondol.control.restoring import restore
from ondol.sql import migrate
from ondol.sql.copying import num_rows_of
from ondol.sql.database import Database
from tests.cluster import REPOSITORY
from tests.job_fixtures import open_database, open_session, ring_and_claim, submit
from tests.moving.test_backup import states_in
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

LIMIT_S = 30
RESTORE = "from ondol.control.restoring import restore; restore(URL, Path(FILE), force=True)"
MOVE = "from ondol.control.moving import move_database; move_database(URL, FILE)"
HALF_WAY = """#!/bin/sh
case "$*" in *--list*) exec {real} "$@";; esac
{real} "$@" > {folder}/script || exit
lines=$(grep -n "^COPY public.jobs " {folder}/script | cut -d: -f1)
head -n $((lines + 1)) {folder}/script
{then}
"""
"""The real pg_restore, whose script stops behind the first job."""


def stop_half_way(folder: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, *, then: str) -> None:
    """From now on pg_restore writes half of its script."""
    here = folder / "programs"
    here.mkdir()
    script = here / "pg_restore"
    script.write_text(HALF_WAY.format(real=programs / "pg_restore", folder=folder, then=then), encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(here), prepend=":")


@contextmanager
def other_program(code: str, url: str, file: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does it, and that is killed at the end of the block."""
    code = f"from pathlib import Path\nURL, FILE = {url!r}, {file!r}\n{code}"
    running = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY)
    try:
        yield running
    finally:
        running.kill()
        running.wait(LIMIT_S)


def make_backup(database: Database, file: Path) -> None:
    """Two jobs run in it; afterwards there are five."""
    submit(database, 2)
    assert len(ring_and_claim(database, open_session(database))) == 2
    back_up(database.url, file)
    submit(database, 3)


def is_alone(url: str) -> Callable[[], bool]:
    """Whether nobody else is connected to a PostgreSQL database."""
    query = sa.text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")

    def look() -> bool:
        with sa.create_engine(url, poolclass=sa.NullPool).connect() as conn:
            return bool(conn.execute(query).scalar_one() == 1)

    return look


def test_a_restore_that_fails_half_way_leaves_the_database_as_it_was(
    postgresql_url: str, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_database(postgresql_url)
    make_backup(database, tmp_path / "backup.dump")
    database.close()
    with monkeypatch.context() as patch:
        stop_half_way(tmp_path, programs, patch, then="echo the disk is gone >&2; exit 1")
        with pytest.raises(Conflict, match=r"as it was: .*ends in the rows of COPY public.jobs"):
            restore(postgresql_url, tmp_path / "backup.dump", force=True)
    states = states_in(postgresql_url)
    assert len(states) == 5 and states.count(JobState.RUNNING) == 2
    assert restore(postgresql_url, tmp_path / "backup.dump", force=True).num_handed_back == 2
    assert states_in(postgresql_url) == [JobState.QUEUED] * 2


def test_a_restore_that_is_killed_half_way_leaves_the_database_as_it_was(
    postgresql_url: str, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_database(postgresql_url)
    make_backup(database, tmp_path / "backup.dump")
    database.close()
    wait_until(is_alone(postgresql_url), within_s=LIMIT_S, what="others to let go")
    os.mkfifo(tmp_path / "wait")
    with monkeypatch.context() as patch:
        stop_half_way(tmp_path, programs, patch, then=f"touch {tmp_path}/half; cat {tmp_path}/wait")
        with other_program(RESTORE, postgresql_url, str(tmp_path / "backup.dump")) as running:
            wait_until((tmp_path / "half").exists, within_s=LIMIT_S, what="half of the script")
            assert running.poll() is None
    with (tmp_path / "wait").open("wb"):  # lets pg_restore end
        pass
    wait_until(is_alone(postgresql_url), within_s=LIMIT_S, what="the server to notice")
    assert len(states_in(postgresql_url)) == 5
    assert restore(postgresql_url, tmp_path / "backup.dump", force=True).num_handed_back == 2


def test_a_restore_of_sqlite_that_is_killed_leaves_the_database_as_it_was(tmp_path: Path, sqlite_url: str) -> None:
    database = open_database(sqlite_url)
    make_backup(database, tmp_path / "backup.db")
    database.close()
    with closing(sqlite3.connect(tmp_path / "ondol.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # whoever writes now waits
        with other_program(RESTORE, sqlite_url, str(tmp_path / "backup.db")) as running:
            wait_until(lambda: any(map(is_put_right, restoring(tmp_path))), within_s=LIMIT_S, what="the copy")
            assert running.poll() is None
    assert len(states_in(sqlite_url)) == 5 and restoring(tmp_path)
    assert restore(sqlite_url, tmp_path / "backup.db", force=True).num_handed_back == 2
    assert states_in(sqlite_url) == [JobState.QUEUED] * 2 and restoring(tmp_path) == []


def restoring(folder: Path) -> list[Path]:
    """What a restore works on beside the database."""
    return [path for path in folder.glob(".ondol.db.restoring-*") if not path.name.endswith(("-wal", "-shm"))]


def is_put_right(path: Path) -> bool:
    """Whether nothing runs any more in what is restored."""
    with closing(sqlite3.connect(path)) as copy:
        try:
            return bool(copy.execute("SELECT count(*) = 2 FROM jobs WHERE state = 'queued'").fetchone()[0])
        except sqlite3.DatabaseError:  # no table yet, locked, or half copied
            return False


def test_what_fails_behind_the_rows_leaves_the_database_as_it_was_too(
    postgresql_url: str, programs: Path, tmp_path: Path
) -> None:
    database = open_database(postgresql_url)
    make_backup(database, tmp_path / "backup.dump")
    with sa.create_engine(postgresql_url, poolclass=sa.NullPool).begin() as conn:
        conn.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    back_up(postgresql_url, tmp_path / "newer.dump")
    submit(database, 1)
    database.close()
    with pytest.raises(Conflict, match="newer one"):
        restore(postgresql_url, tmp_path / "newer.dump", force=True)
    assert len(states_in(postgresql_url)) == 6
    restore(postgresql_url, tmp_path / "backup.dump", force=True)
    assert migrate.current(postgresql_url) == migrate.newest() and len(states_in(postgresql_url)) == 2


def test_a_backup_of_a_moved_database_takes_writes(sqlite_url: str, tmp_path: Path) -> None:
    database = open_database(sqlite_url)
    submit(database, 1)
    move_database(sqlite_url, f"sqlite:///{tmp_path / 'new.db'}")
    database.close()
    back_up(sqlite_url, tmp_path / "backup.db")
    again = f"sqlite:///{tmp_path / 'again.db'}"
    restore(again, tmp_path / "backup.db")
    database = Database(again)
    assert submit(database, 1)
    database.close()


def test_a_move_that_is_killed_half_way_leaves_both_as_they_were(
    sqlite_url: str, postgresql_url: str, tmp_path: Path
) -> None:
    source = open_database(sqlite_url)
    submit(source, 3)
    migrate.upgrade(postgresql_url)
    engine = sa.create_engine(postgresql_url, poolclass=sa.NullPool)
    waits = sa.text("SELECT count(*) FROM pg_locks WHERE relation = 'job_inputs'::regclass AND NOT granted")
    with engine.connect() as other, engine.connect() as looking:
        other.execute(sa.text("LOCK TABLE job_inputs IN SHARE MODE"))  # jobs are copied, and then their inputs wait
        with other_program(MOVE, sqlite_url, postgresql_url) as running:
            wait_until(
                lambda: looking.execute(waits).scalar_one() == 1, within_s=LIMIT_S, what="the move to be half way"
            )
            assert running.poll() is None
    wait_until(is_alone(postgresql_url), within_s=LIMIT_S, what="the server to notice")
    assert submit(source, 1), "the old one takes writes"
    with engine.connect() as conn:
        assert num_rows_of(conn) == {}
    assert {table.name: table.num_rows for table in move_database(sqlite_url, postgresql_url).tables}["jobs"] == 4
    source.close()
