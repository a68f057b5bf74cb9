"""Backups of the database: SQLite by its own online backup, PostgreSQL by pg_dump. `restoring` is the way back."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from ondol.contract.errors import Conflict, DatabaseUnavailable, NotFound, NotReady
from ondol.control.sqlite_files import SQLITE, check_pages, open_sqlite, revision_in, sqlite_errors, sqlite_path
from ondol.sql import migrate


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
        if url.startswith(SQLITE):
            revision = _copy_sqlite(url, staging)
        else:
            revision = migrate.current(url)
            _dump_postgresql(url, staging, shown=file)
        _persist(staging, file)
    finally:
        staging.unlink(missing_ok=True)
    return BackupDone(file, file.stat().st_size, revision, time.monotonic() - began_at)


def find_program(name: str, url: str, options: Sequence[str], file: Path) -> str:
    """Where one of PostgreSQL's own programs is; ToolMissing, with the line to run elsewhere, where it is not here.

    The password stands in no message.
    """
    found = shutil.which(name)
    if found is None:
        line = shlex.join([name, "--dbname", _without_password(url), *options, str(file)])
        raise ToolMissing(f"{name} is not on PATH; run this where PostgreSQL's programs are: {line}")
    return found


def _copy_sqlite(url: str, target: Path) -> str | None:
    """All pages in one read transaction: writers go on beside it, and are not in it."""
    source_path = sqlite_path(url)
    if source_path is None or not source_path.exists():
        raise NotFound(f"there is no database at {source_path} yet; start `ondol up` there, or set ONDOL_DATA_DIR")
    target.touch(mode=0o600)  # it holds people's texts and digests of keys
    with sqlite_errors(), closing(open_sqlite(source_path)) as source, closing(open_sqlite(target)) as copy:
        source.backup(copy, pages=-1)
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        check_pages(copy, target)
        return revision_in(copy)


def _dump_postgresql(url: str, file: Path, *, shown: Path) -> None:
    """Run pg_dump; the password goes by the environment. `shown` stands in messages for the name of the moment."""
    options = ["--format=custom", "--file"]
    found = find_program("pg_dump", url, options, shown)
    file.touch(mode=0o600)  # it holds people's texts and digests of keys
    command = ["--dbname", _without_password(url), *options]
    done = subprocess.run(
        [found, *command, str(file)], env=_environment(url), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = " ".join(done.stderr.split())[:500]
        line = shlex.join(["pg_dump", *command, str(shown)])
        raise DatabaseUnavailable(f"pg_dump failed: {reason}; it has to be of the server's release: {line}")


def _environment(url: str) -> dict[str, str]:
    password = sa.make_url(url).password
    return dict(os.environ) | ({} if password is None else {"PGPASSWORD": str(password)})


def _without_password(url: str) -> str:
    return sa.make_url(url)._replace(drivername="postgresql", password=None).render_as_string()  # `set` keeps it


def _persist(staging: Path, file: Path) -> None:
    with staging.open("rb") as written:
        os.fsync(written.fileno())
    staging.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
