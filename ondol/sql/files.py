"""Uploaded files: what they are called, what they hold, until when. The bytes are in the store (`FileBlobs`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from ondol.contract.errors import FileInUse, FileNotFound
from ondol.contract.states import TERMINAL
from ondol.sql.tables import IS_NOT_SHARDED, IS_TRAINING, files, jobs

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork

_IN_ONE_QUERY = 500


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file whose bytes are in the store already, about to be recorded. `expires_after_s` counts from the record."""

    id: str
    project_id: str
    filename: str
    purpose: str
    size_bytes: int
    sha256: str
    expires_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class FileRecord:
    """An uploaded file."""

    id: str
    project_id: str
    filename: str
    purpose: str
    size_bytes: int
    sha256: str
    created_at: float
    expires_at: float | None


class FileRepository:
    """Files of all projects; whoever passes `project_id` sees that project's alone. An expired file is not found."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn

    def add(self, new: NewFile) -> FileRecord:
        """Record the file; it can be named from the commit on."""
        now = self._uow.now
        known = self._find([new.id]) if self._uow.is_retry else []
        if known:
            return known[0]
        expires_at = None if new.expires_after_s is None else now + new.expires_after_s
        record = FileRecord(
            new.id, new.project_id, new.filename, new.purpose, new.size_bytes, new.sha256, now, expires_at
        )
        self._conn.execute(sa.insert(files), [{name: getattr(record, name) for name in FileRecord.__slots__}])
        return record

    def get(self, file_id: str, project_id: str, *, may_be_expired: bool = False) -> FileRecord:
        """The file, or FileNotFound (FileGone if its time was over).

        A job that was accepted before its file expired passes `may_be_expired`.
        """
        query = sa.select(files).where(files.c.id == file_id, files.c.project_id == project_id)
        if not may_be_expired:
            query = query.where(self._is_valid())
        return self._one(query, file_id, project_id)

    def hold(self, file_id: str, project_id: str) -> FileRecord:
        """Like `get`, and nobody deletes the file before this transaction, which records a job on it, has ended."""
        query = sa.select(files).where(files.c.id == file_id, files.c.project_id == project_id, self._is_valid())
        if not self._uow.is_sqlite:  # there, one transaction at a time writes
            query = query.with_for_update(read=True)
        return self._one(query, file_id, project_id)

    def page(
        self,
        project_id: str,
        *,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 1_000,
        is_ascending: bool = False,
    ) -> tuple[list[FileRecord], bool]:
        """A page by time of upload, newest first unless `is_ascending`, behind `after`; and whether there are more."""
        order = files.c.id.asc() if is_ascending else files.c.id.desc()
        query = sa.select(files).where(files.c.project_id == project_id, self._is_valid()).order_by(order)
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        if after is not None:
            query = query.where(files.c.id > after if is_ascending else files.c.id < after)
        found = [_record(row) for row in self._conn.execute(query.limit(limit + 1))]
        return found[:limit], len(found) > limit

    def delete(self, file_id: str, project_id: str) -> FileRecord:
        """Forget the file; its blob is to be deleted after the commit. FileInUse while an unfinished job names it."""
        query = sa.select(files).where(files.c.id == file_id, files.c.project_id == project_id, self._is_valid())
        if not self._uow.is_sqlite:
            query = query.with_for_update()
        record = self._one(query, file_id, project_id)
        fine_tune = self._named_by_fine_tunes(project_id).get(file_id)
        if fine_tune is not None:
            raise _in_use(file_id, f"the unfinished fine-tune {fine_tune}", fine_tune, until="has ended")
        job_id = self._conn.execute(sa.select(jobs.c.id).where(_is_still_read(file_id)).limit(1)).scalar()
        if job_id is not None:
            raise _in_use(file_id, f"job {job_id}, which has not read it yet", job_id, until="has begun or ended")
        self.forget([file_id])
        self._uow.purging.add_garbage([f"files/{file_id}"])
        return record

    def unused(self, file_ids: Sequence[str]) -> list[str]:
        """Those of the files, of all projects, that no unfinished job needs."""
        named = self._named_by_fine_tunes() if file_ids else {}
        is_read = sa.exists().where(_is_still_read(files.c.id))
        query = sa.select(files.c.id).where(files.c.id.in_(file_ids), sa.not_(is_read)).order_by(files.c.id)
        return [file_id for file_id in self._conn.execute(query).scalars() if file_id not in named]

    def forget(self, file_ids: Sequence[str]) -> None:
        """Remove these rows, whatever state they are in; the caller deletes the blobs after the commit."""
        self._conn.execute(sa.delete(files).where(files.c.id.in_(file_ids)))

    def existing(self, file_ids: Sequence[str]) -> set[str]:
        """Those of the ids that have a row, of all projects; the others' blobs are orphans."""
        known: set[str] = set()
        for start in range(0, len(file_ids), _IN_ONE_QUERY):
            known |= {record.id for record in self._find(file_ids[start : start + _IN_ONE_QUERY])}
        return known

    def _find(self, file_ids: Sequence[str]) -> list[FileRecord]:
        query = sa.select(files).where(files.c.id.in_(file_ids))
        return [_record(row) for row in self._conn.execute(query)]

    def _one(self, query: sa.Select[Any], file_id: str, project_id: str) -> FileRecord:
        row = self._conn.execute(query).one_or_none()
        if row is None:
            self._uow.purging.check_file(file_id, project_id)
            message = f"there is no file {file_id[:80]!r} in this project; `ondol files ls` lists them"
            raise FileNotFound(message, param="file_id")
        return _record(row)

    def _is_valid(self) -> sa.ColumnElement[bool]:
        return sa.or_(files.c.expires_at.is_(None), files.c.expires_at > self._uow.now)

    def _named_by_fine_tunes(self, project_id: str | None = None) -> dict[str, str]:
        """Files that unfinished fine-tunes name, each with one such job. They are few: compared here, not in SQL."""
        query = sa.select(jobs.c.id, jobs.c.options).where(IS_TRAINING, jobs.c.finished_at.is_(None))
        if project_id is not None:
            query = query.where(jobs.c.project_id == project_id)
        named: dict[str, str] = {}
        for row in self._conn.execute(query.order_by(jobs.c.id)):
            for field in ("train_file", "validation_file"):
                if row.options.get(field):
                    named.setdefault(row.options[field], row.id)
        return named


def _is_still_read(file_id: str | sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Unfinished jobs whose inputs are the rows of the file, and that have not been cut into shards from it."""
    return sa.and_(jobs.c.input_file_id == file_id, IS_NOT_SHARDED, jobs.c.state.not_in(list(TERMINAL)))


def _in_use(file_id: str, by: str, job_id: str, *, until: str) -> FileInUse:
    return FileInUse(
        f"file {file_id} is in use by {by}; delete it when that job {until},"
        f" or cancel the job first (`ondol jobs cancel {job_id}`)",
        param="file_id",
    )


def _record(row: Row[Any]) -> FileRecord:
    return FileRecord(**{name: getattr(row, name) for name in FileRecord.__slots__})
