"""Backups of the database and their way back: SQLite by its own online backup, PostgreSQL by its own programs."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from ondol.contract.errors import Conflict, DatabaseUnavailable, InvalidPayload, NotFound, NotReady
from ondol.sql import migrate, restored
from ondol.sql.database import Database
from ondol.sql.emptiness import is_live, what_it_holds

_SQLITE = "sqlite:///"
_MAGIC = b"SQLite format 3\x00"
_BUSY_S = 30


class ToolMissing(NotReady):
    """A program that the database's own backup needs is not installed here."""

    code = "tool_missing"


@dataclass(frozen=True, slots=True)
class BackupDone:
    """A backup that is whole on the disk: its schema's revision (None where only PostgreSQL can read it)."""

    file: Path
    size_bytes: int
    revision: str | None
    took_s: float


@dataclass(frozen=True, slots=True)
class RestoreDone:
    """A database as it was when the backup was made, brought up to date; so many jobs ran then and wait again."""

    revision: str | None
    num_handed_back: int


def back_up(url: str, file: Path, *, overwrite: bool = False) -> BackupDone:
    """Write a backup of one moment to `file`, which appears whole or not at all; whoever works goes on.

    Conflict if the file is there; ToolMissing, with the command to run elsewhere, where PostgreSQL's pg_dump is not.
    """
    began_at = time.monotonic()
    if file.exists() and not overwrite:
        raise Conflict(f"{file} is there already; choose another name, or add --force", code="file_exists")
    if not file.parent.is_dir():
        raise NotFound(f"there is no folder {file.parent}; make it first")
    staging = file.with_name(f".{file.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        if url.startswith(_SQLITE):
            revision = _copy_sqlite(url, staging)
        else:
            revision = migrate.current(url)
            _run_postgresql("pg_dump", url, ["--format=custom", "--file"], staging, shown=file)
        _persist(staging, file)
    finally:
        staging.unlink(missing_ok=True)
    return BackupDone(file, file.stat().st_size, revision, time.monotonic() - began_at)


def restore(url: str, file: Path, *, force: bool = False) -> RestoreDone:
    """Make the database what it was when the backup was made, bring its schema up to date, and hand back what ran.

    Conflict over a database that holds something or that somebody works with, unless forced; InvalidPayload for a file
    that is no backup of this kind of database, is damaged, or has a schema that this release does not know.
    """
    if not file.is_file():
        raise NotFound(f"there is no file {file}")
    is_sqlite = url.startswith(_SQLITE)
    if is_sqlite:
        _check_sqlite_backup(file)
    elif _begins_with(file, _MAGIC):
        raise InvalidPayload(f"{file} is a SQLite database; restore it there, then `ondol db copy` moves it here")
    if not force:
        refuse_unless_free(url)
    if is_sqlite:
        _restore_sqlite(url, file)
    else:
        _list_postgresql(file)
        _empty_postgresql(url)
        _run_postgresql(
            "pg_restore", url, ["--no-owner", "--exit-on-error", "--single-transaction"], file, is_target=True
        )
    migrate.upgrade(url)
    database = Database(url, pool_size=1)
    try:
        num = database.write(lambda uow: restored.hand_everything_back(uow, reason="restored"))
    finally:
        database.close()
    return RestoreDone(migrate.current(url), num)


def refuse_unless_free(url: str) -> None:
    """Conflict if somebody works with the database, or if it holds anything."""
    if sqlite_path(url) is not None and not _exists(url):
        return
    if migrate.current(url) is None:
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


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite URL, None for another database."""
    return Path(url.removeprefix(_SQLITE)) if url.startswith(_SQLITE) else None


def _exists(url: str) -> bool:
    path = sqlite_path(url)
    return path is None or path.exists()


def _copy_sqlite(url: str, target: Path) -> str | None:
    """All pages in one read transaction: writers go on beside it, and are not in it."""
    source_path = sqlite_path(url)
    if source_path is None or not source_path.exists():
        raise NotFound(f"there is no database at {source_path} yet; start `ondol up` there, or set ONDOL_DATA_DIR")
    target.touch(mode=0o600)  # it holds people's texts and digests of keys
    with _sqlite_errors(), closing(_open(source_path)) as source, closing(_open(target)) as copy:
        source.backup(copy, pages=-1)
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        _check(copy, target)
        return _revision(copy)


def _restore_sqlite(url: str, file: Path) -> None:
    """In one transaction of the target: whoever has it open sees the old state or the new one, never something else."""
    path = sqlite_path(url)
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    with _sqlite_errors(), closing(_open(file)) as source, closing(_open(path)) as target:
        source.backup(target, pages=-1)
        target.execute("PRAGMA journal_mode=WAL")


def _check_sqlite_backup(file: Path) -> None:
    if not _begins_with(file, _MAGIC):
        raise InvalidPayload(f"{file} is no SQLite database; a backup by pg_dump belongs into PostgreSQL")
    with _sqlite_errors(), closing(_open(file)) as backup:
        _check(backup, file)
        revision = _revision(backup)
    if revision is None:
        raise InvalidPayload(f"{file} is no backup of Ondol: it has no schema revision")
    if revision not in migrate.known():
        raise InvalidPayload(
            f"{file} has schema {revision}, newer than this release knows ({migrate.newest()}); restore it with a newer"
        )


def _check(connection: sqlite3.Connection, file: Path) -> None:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise InvalidPayload(f"{file} is damaged: {found}")


def _revision(connection: sqlite3.Connection) -> str | None:
    query = "SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'"
    if not connection.execute(query).fetchone()[0]:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)


@contextmanager
def _sqlite_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as exc:
        raise DatabaseUnavailable(f"SQLite could not do it: {exc}") from exc
    except sqlite3.DatabaseError as exc:
        raise InvalidPayload(f"the file is damaged: {exc}") from exc


def _begins_with(file: Path, magic: bytes) -> bool:
    with file.open("rb") as reader:
        return reader.read(len(magic)) == magic


def _persist(staging: Path, file: Path) -> None:
    with staging.open("rb") as written:
        os.fsync(written.fileno())
    staging.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _list_postgresql(file: Path) -> None:
    """InvalidPayload if pg_restore cannot read the file; then nothing was touched yet."""
    found = shutil.which("pg_restore")
    if found is None:
        return  # said with the line to run by whoever needs it next
    done = subprocess.run([found, "--list", str(file)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = " ".join(done.stderr.split())[:500]
        raise InvalidPayload(f"{file} is not a backup that pg_restore reads: {reason}")


def _empty_postgresql(url: str) -> None:
    """Drop all tables, those of any release, and what a move has left: a backup may be of another schema."""
    if shutil.which("pg_restore") is None:
        return
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    try:
        with engine.begin() as conn:
            found = sa.MetaData()
            found.reflect(conn)
            found.drop_all(conn)
            conn.exec_driver_sql("DROP FUNCTION IF EXISTS ondol_refuse_write()")
    finally:
        engine.dispose()


def _run_postgresql(
    program: str, url: str, options: Sequence[str], file: Path, *, shown: Path | None = None, is_target: bool = False
) -> None:
    """Run one of PostgreSQL's own programs; the password goes by the environment and into no message.

    `shown` stands in messages where `file` is only the name of the moment.
    """
    parsed = sa.make_url(url)
    environment = dict(os.environ)
    if parsed.password is not None:
        environment["PGPASSWORD"] = str(parsed.password)
    target = parsed._replace(drivername="postgresql", password=None).render_as_string()  # `set` keeps a password
    command = [program, "--dbname", target, *options]
    line = shlex.join([*command, str(shown or file)])
    found = shutil.which(program)
    if found is None:
        raise ToolMissing(f"{program} is not on PATH; run this where PostgreSQL's programs are: {line}")
    done = subprocess.run(
        [found, *command[1:], str(file)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return
    reason = " ".join(done.stderr.split())[:500]
    if is_target:
        raise Conflict(f"{program} refused, and the database is empty now: {reason}", code="restore_refused")
    raise DatabaseUnavailable(f"{program} failed: {reason}; it has to be of the server's release: {line}")
