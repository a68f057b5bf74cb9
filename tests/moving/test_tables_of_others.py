"""A restore loses no table of another application that shares the database."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from ondol.contract.errors import Conflict
from ondol.contract.states import JobState
from ondol.control.backup import back_up
from ondol.control.restoring import restore
from ondol.sql.database import plain_engine
from tests.job_fixtures import open_database, submit
from tests.moving.test_backup import states_in
from tests.servers import PostgresServer

pytestmark = pytest.mark.integration


def make_customers(url: str, table: str = "customers") -> None:
    engine = plain_engine(url)
    with engine.begin() as conn:
        conn.execute(sa.text(f"CREATE TABLE {table} (name TEXT)"))
        conn.execute(sa.text(f"INSERT INTO {table} VALUES ('Kim')"))
    engine.dispose()


def customers(url: str, table: str = "customers") -> list[str]:
    engine = plain_engine(url)
    with engine.connect() as conn:
        return list(conn.execute(sa.text(f"SELECT name FROM {table}")).scalars())


def backup_of_one_job(url: str, file: Path) -> Path:
    database = open_database(url)
    submit(database, 1)
    database.close()
    back_up(url, file)
    return file


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("has_ours", [False, True])
def test_sqlite_with_tables_of_others_is_refused(sqlite_url: str, tmp_path: Path, force: bool, has_ours: bool) -> None:
    file = backup_of_one_job(sqlite_url, tmp_path / "backup.db")
    target = f"sqlite:///{tmp_path / 'theirs.db'}"
    if has_ours:
        open_database(target).close()
    make_customers(target)
    with pytest.raises(Conflict, match=r"tables that this release does not know \(customers\)") as caught:
        restore(target, file, force=force)
    assert caught.value.code == "database_not_empty"
    assert customers(target) == ["Kim"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.usefixtures("programs")
def test_tables_of_others_that_are_called_like_ours_are_not_taken_for_ours(
    database_url: str, postgres_server: PostgresServer, tmp_path: Path, force: bool
) -> None:
    file = backup_of_one_job(database_url, tmp_path / "backup")
    is_sqlite = database_url.startswith("sqlite")
    target = f"sqlite:///{tmp_path / 'theirs.db'}" if is_sqlite else postgres_server.create_database()
    make_customers(target, "sessions")
    with pytest.raises(Conflict, match="sessions") as caught:
        restore(target, file, force=force)
    assert caught.value.code == "database_not_empty"
    assert customers(target, "sessions") == ["Kim"]
    if not is_sqlite:
        postgres_server.drop_database(target)


@pytest.mark.usefixtures("programs")
def test_postgresql_with_tables_of_others_is_refused_and_forced_keeps_them(
    postgresql_url: str, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    file = backup_of_one_job(postgresql_url, tmp_path / "backup.dump")
    target = postgres_server.create_database()
    try:
        make_customers(target)
        with pytest.raises(Conflict, match="customers"):
            restore(target, file)
        assert customers(target) == ["Kim"]
        restore(target, file, force=True)
        submit(database := open_database(target), 3)
        database.close()
        restore(target, file, force=True)
        assert states_in(target) == [JobState.QUEUED] and customers(target) == ["Kim"]
    finally:
        postgres_server.drop_database(target)


@pytest.mark.usefixtures("programs")
def test_what_a_newer_release_has_made_is_not_left_in_the_way(postgresql_url: str, tmp_path: Path) -> None:
    file = backup_of_one_job(postgresql_url, tmp_path / "backup.dump")
    engine = plain_engine(postgresql_url)
    with engine.begin() as conn:
        conn.execute(sa.text("CREATE TABLE tomorrow (id TEXT)"))
        conn.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(Conflict, match="tomorrow"):
        restore(postgresql_url, file, force=True)
