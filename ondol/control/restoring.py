"""The way back from a backup: the database is what it was then, with what ran waiting again, or as it is now."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from ondol.contract.errors import Conflict, InvalidPayload, NotFound
from ondol.control.backup import find_program
from ondol.control.dump_script import ScriptBroken, play
from ondol.control.sqlite_files import SQLITE, check_pages, open_sqlite, revision_in, sqlite_errors, sqlite_path
from ondol.sql import migrate, moved, restored
from ondol.sql.database import Database, plain_engine
from ondol.sql.emptiness import OURS, is_live, tables_of_others, what_it_holds
from ondol.sql.unit_of_work import UnitOfWork

_MAGIC = b"SQLite format 3\x00"
_LOCK_WAIT = "SET LOCAL lock_timeout = '30s'"


@dataclass(frozen=True, slots=True)
class RestoreDone:
    """A database as it was when the backup was made, brought up to date; so many jobs ran then and wait again."""

    revision: str | None
    num_handed_back: int


def restore(url: str, file: Path, *, force: bool = False) -> RestoreDone:
    """Make the database what it was when the backup was made, bring its schema up to date, and hand back what ran.

    One transaction: whoever has it open sees the old state or the new one, and whatever fails or is killed leaves the
    old one. Conflict over a database that holds something or that somebody works with, unless forced, and over tables
    that are not ours; forced, PostgreSQL keeps those. InvalidPayload for a file that is no backup of this kind of
    database, is damaged, or has a schema that this release does not know.
    """
    if not file.is_file():
        raise NotFound(f"there is no file {file}")
    if url.startswith(SQLITE):
        _check_sqlite_backup(file)
    elif _begins_with(file, _MAGIC):
        raise InvalidPayload(f"{file} is a SQLite database; restore it there, then `ondol db copy` moves it here")
    _refuse_tables_of_others(url, force=force)
    if not force:
        refuse_unless_free(url)
    num = _restore_sqlite(url, file) if url.startswith(SQLITE) else _restore_postgresql(url, file)
    return RestoreDone(migrate.current(url), num)


def refuse_unless_free(url: str) -> None:
    """Conflict if somebody works with the database, or if it holds anything of ours."""
    if not _is_there(url) or migrate.current(url) is None:
        return
    database = Database(url, pool_size=1)
    try:
        live, holds = database.read(lambda uow: (is_live(uow), what_it_holds(uow)))
    finally:
        database.close()
    if live:
        raise Conflict(f"the database is in use by {live}; stop everything first", code="database_in_use")
    if holds:
        raise Conflict(
            f"the database is not empty, it holds {holds}; choose an empty one, or give it up with --force",
            code="database_not_empty",
        )


def _refuse_tables_of_others(url: str, *, force: bool) -> None:
    """SQLite's file is replaced as a whole, and what a newer release has made would be in the way of its migrations."""
    if not _is_there(url):
        return
    revision = migrate.current(url)
    engine = plain_engine(url)
    try:
        with engine.connect() as conn:
            found = tables_of_others(conn)
    finally:
        engine.dispose()
    is_known = revision is None or revision in migrate.known()
    may_stay = force and sqlite_path(url) is None and is_known and OURS.isdisjoint(found)
    if found and not may_stay:
        raise Conflict(
            f"the database holds tables that this release does not know ({', '.join(found)[:200]}): another"
            " application's, or a newer release's; choose an empty one",
            code="database_not_empty",
        )


def _is_there(url: str) -> bool:
    """Whether there is a database; SQLite would make one when it is looked at."""
    path = sqlite_path(url)
    return path is None or path.exists()


def _restore_sqlite(url: str, file: Path) -> int:
    """Put right in a copy beside the database; then all pages of that in one transaction of the target."""
    path = sqlite_path(url)
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in path.parent.glob(f".{path.name}.restoring-*"):  # by a restore that was killed
        left.unlink()
    staging = path.with_name(f".{path.name}.restoring-{uuid.uuid4().hex[:8]}")
    try:
        staging.touch(mode=0o600)  # it holds people's texts and digests of keys
        with sqlite_errors(), closing(open_sqlite(file)) as backup, closing(open_sqlite(staging)) as copy:
            backup.backup(copy, pages=-1)
        num = _in_one_transaction(f"{SQLITE}{staging}", _put_right)
        path.touch(mode=0o600)
        with sqlite_errors(), closing(open_sqlite(staging)) as copy, closing(open_sqlite(path)) as target:
            copy.backup(target, pages=-1)
            target.execute("PRAGMA journal_mode=WAL")
    finally:
        for part in (staging, *staging.parent.glob(f"{staging.name}-*")):
            part.unlink(missing_ok=True)
    return num


def _restore_postgresql(url: str, file: Path) -> int:
    options = ["--no-owner", "--exit-on-error", "--single-transaction"]
    pg_restore = find_program("pg_restore", url, options, file)
    _check_postgresql_backup(file, pg_restore)

    def fill(conn: Connection) -> int:
        conn.exec_driver_sql(_LOCK_WAIT)
        _drop_all(conn)
        driver = conn.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        play(file, pg_restore, driver)
        return _put_right(conn)

    try:
        return _in_one_transaction(url, fill)
    except (ScriptBroken, psycopg.Error, DBAPIError) as exc:
        reason = " ".join(str(getattr(exc, "orig", None) or exc).split())[:500]
        raise Conflict(
            f"the backup could not be restored, and the database is as it was: {reason}", code="restore_refused"
        ) from exc


def _put_right(conn: Connection) -> int:
    """What a backup needs before somebody works with it; how many jobs ran when it was made."""
    moved.unmark_moved(conn)
    migrate.upgrade_within(conn)
    return restored.hand_everything_back(UnitOfWork(conn, is_sqlite=conn.dialect.name == "sqlite"), reason="restored")


def _in_one_transaction(url: str, work: Callable[[Connection], int]) -> int:
    engine = plain_engine(url)
    try:
        with engine.connect() as conn, conn.begin():
            if conn.dialect.name == "sqlite":
                conn.exec_driver_sql("BEGIN IMMEDIATE")
            return work(conn)
    finally:
        engine.dispose()


def _drop_all(conn: Connection) -> None:
    """Drop our tables, those of any release, and what a move has left: a backup may be of another schema."""
    found = sa.MetaData()
    found.reflect(conn, only=lambda name, _: name in OURS)
    found.drop_all(conn)
    conn.exec_driver_sql("DROP FUNCTION IF EXISTS ondol_refuse_write()")


def _check_sqlite_backup(file: Path) -> None:
    if not _begins_with(file, _MAGIC):
        raise InvalidPayload(f"{file} is no SQLite database; a backup by pg_dump belongs into PostgreSQL")
    with sqlite_errors(), closing(open_sqlite(file)) as backup:
        check_pages(backup, file)
        revision = revision_in(backup)
    if revision is None:
        raise InvalidPayload(f"{file} is no backup of Ondol: it has no schema revision")
    if revision not in migrate.known():
        raise InvalidPayload(
            f"{file} has schema {revision}, newer than this release knows ({migrate.newest()}); restore it with a newer"
        )


def _check_postgresql_backup(file: Path, pg_restore: str) -> None:
    done = subprocess.run([pg_restore, "--list", str(file)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = " ".join(done.stderr.split())[:500]
        raise InvalidPayload(f"{file} is not a backup that pg_restore reads: {reason}")


def _begins_with(file: Path, magic: bytes) -> bool:
    with file.open("rb") as reader:
        return reader.read(len(magic)) == magic
