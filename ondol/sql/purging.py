"""What is deleted when its time is over: parts of ended jobs, then the jobs; files; keys, sessions and traces.

Each method is one small step of its own transaction: it deletes a bounded number of rows, found by an index, and says
whether there may be more. Files of the store are not touched here: their paths are written to `store_garbage` in the
transaction that deletes the rows, so that a crash between the two loses nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Row

from ondol.contract.errors import FileGone, JobGone, PartGone
from ondol.contract.kinds import JobKind
from ondol.contract.states import TERMINAL
from ondol.sql.purge_tables import gone, purges, store_garbage
from ondol.sql.tables import (
    IS_WHOLE,
    attempts,
    checkpoints,
    events,
    files,
    idempotency_keys,
    job_inputs,
    jobs,
    notices,
    results,
    sessions,
)

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork

MAX_JOBS = 200
"""Jobs of one step."""
MAX_ROWS = 500
"""Rows of one large job, keys, sessions or traces of one step."""


class Part(StrEnum):
    """What a job leaves behind beside its row."""

    INPUTS = "inputs"
    RESULTS = "results"
    EVENTS = "events"


_SMALL_RESULTS = (JobKind.FINE_TUNE, JobKind.IMPORT)
"""Kinds whose result is the name of a model: it stays as long as the job."""
_TABLES = {Part.INPUTS: job_inputs, Part.RESULTS: results, Part.EVENTS: events}
_GONE_AT = {part: jobs.c[f"{part.value}_gone_at"] for part in Part}
_SETTINGS = {part: f"ONDOL_KEEP_{part.name}_DAYS" for part in Part}


@dataclass(frozen=True, slots=True)
class Step:
    """What one step has deleted, in its own units (jobs, files, keys); `may_be_more`: another step is worth it."""

    num: int
    may_be_more: bool


class PurgeRepository:
    """Steps of purging, of all projects; and what there is to say about what went."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn
        self._insert = sqlite.insert if uow.is_sqlite else postgresql.insert

    def purge_part(self, part: Part, *, older_than_s: float) -> Step:
        """Delete this part of the jobs that ended longer ago, shards' too; of a large job a bounded piece at a time.

        A job of whose end somebody is still to be told at that time keeps what it has until it goes as a whole.
        """
        found = self._ended(older_than_s, beginning=self._place(part))
        mine = [row for row in found if part is not Part.RESULTS or row.kind not in _SMALL_RESULTS]
        large = next((i for i, row in enumerate(mine) if _is_large(row)), len(mine))
        if large == 0 and mine:
            is_done = self._purge_large(part, mine[0])
            done, place = ([mine[0]], mine[0]) if is_done else ([], None)
        else:
            done, place = mine[:large], (mine[large - 1] if large < len(mine) else found[-1]) if found else None
            self._delete_of(part, [row.id for row in done])
        if place is not None:
            self._set_place(part, place)
        return Step(len(done), may_be_more=len(done) < len(mine) or len(found) == MAX_JOBS)

    def purge_jobs(self, *, older_than_s: float) -> Step:
        """Delete jobs that ended longer ago with all that belongs to them; usage, models and versions stay."""
        found = self._ended(older_than_s)
        done: list[Row[Any]] = []
        is_cut_short = False
        for row in found:
            if _is_large(row) and not self._delete_pieces(row):
                is_cut_short = True
                break
            done.append(row)
        self._delete_jobs(done)
        return Step(len(done), may_be_more=is_cut_short or len(done) == MAX_JOBS)

    def purge_files(self, *, older_than_s: float | None) -> Step:
        """Delete uploaded files that have expired, or are older, and that no unfinished job needs."""
        candidates = self._old_files(older_than_s)
        unused = self._uow.files.unused(candidates)
        rows = self._conn.execute(sa.select(files.c.id, files.c.project_id).where(files.c.id.in_(unused))).all()
        self._uow.files.forget([row.id for row in rows])
        self._leave_traces(rows)
        self.add_garbage(f"files/{row.id}" for row in rows)
        return Step(len(rows), may_be_more=bool(rows) and len(candidates) >= MAX_JOBS)

    def purge_keys(self, *, older_than_s: float) -> Step:
        """Forget Idempotency-Keys that are older."""
        key = idempotency_keys.c
        old = sa.select(key.project_id, key.key).where(key.created_at < self._uow.now - older_than_s)
        return self._delete_some(sa.tuple_(key.project_id, key.key), old.order_by(key.created_at))

    def purge_sessions(self, *, older_than_s: float) -> Step:
        """Forget sessions of workers that ended longer ago."""
        old = sa.select(sessions.c.id).where(sessions.c.ended_at < self._uow.now - older_than_s)
        return self._delete_some(sessions.c.id, old.order_by(sessions.c.ended_at))

    def purge_traces(self, *, older_than_s: float) -> Step:
        """Forget when jobs and files went; they are answered as if they had never been from then on."""
        old = sa.select(gone.c.id).where(gone.c.gone_at < self._uow.now - older_than_s)
        return self._delete_some(gone.c.id, old.order_by(gone.c.gone_at))

    def add_garbage(self, paths: Any) -> None:
        """These paths below the store's root are named by nothing any more once this transaction is committed."""
        rows = [{"path": path, "created_at": self._uow.now} for path in dict.fromkeys(paths)]
        if rows:
            self._conn.execute(self._insert(store_garbage).on_conflict_do_nothing(), rows)

    def garbage(self, limit: int = 200, *, behind: str = "") -> list[str]:
        """Paths below the store's root whose files are to be deleted, in order, those behind a path alone."""
        query = sa.select(store_garbage.c.path).where(store_garbage.c.path > behind)
        return list(self._conn.execute(query.order_by(store_garbage.c.path).limit(limit)).scalars())

    def forget_garbage(self, paths: Collection[str]) -> None:
        """These are deleted."""
        self._conn.execute(sa.delete(store_garbage).where(store_garbage.c.path.in_(paths)))

    def check_part(self, job_id: str, part: Part) -> None:
        """PartGone, saying when, if this part of the job was deleted when its time was over."""
        gone_at = self._conn.execute(sa.select(_GONE_AT[part]).where(jobs.c.id == job_id)).scalar()
        if gone_at is not None:
            raise PartGone(
                f"the {part.value} of job {job_id} were deleted on {_utc(gone_at)}, when their time was over"
                f" ({_SETTINGS[part]} on the server)",
                code=f"{part.value}_gone",
            )

    def check_job(self, job_id: str, project_id: str) -> None:
        """JobGone, saying when, if the job was purged."""
        gone_at = self._gone_at(job_id, project_id)
        if gone_at is not None:
            raise JobGone(
                f"job {job_id} was deleted on {_utc(gone_at)}, when its time was over"
                " (ONDOL_KEEP_JOBS_DAYS on the server)",
                param="id",
            )

    def check_file(self, file_id: str, project_id: str) -> None:
        """FileGone, saying when, if the file was purged."""
        gone_at = self._gone_at(file_id, project_id)
        if gone_at is not None:
            raise FileGone(
                f"file {file_id} was deleted on {_utc(gone_at)}, when its time was over (its `expires_after`, or"
                " ONDOL_KEEP_FILES_DAYS on the server); upload it again",
                param="file_id",
            )

    def _gone_at(self, id: str, project_id: str) -> float | None:
        query = sa.select(gone.c.gone_at).where(gone.c.id == id, gone.c.project_id == project_id)
        return self._conn.execute(query).scalar()

    def _ended(self, older_than_s: float, *, beginning: tuple[float, str] | None = None) -> Sequence[Row[Any]]:
        """Whole jobs that ended longer ago, oldest end first, held until this transaction ends."""
        query = ended_query(self._uow.now - older_than_s, beginning=beginning)
        return self._conn.execute(query if self._uow.is_sqlite else query.with_for_update(of=jobs)).all()

    def _place(self, part: Part) -> tuple[float, str] | None:
        row = self._conn.execute(sa.select(purges).where(purges.c.name == part.value)).one_or_none()
        return None if row is None else (row.finished_at, row.job_id)

    def _set_place(self, part: Part, last: Row[Any]) -> None:
        statement = self._insert(purges).values(name=part.value, finished_at=last.finished_at, job_id=last.id)
        there = {"finished_at": last.finished_at, "job_id": last.id}
        self._conn.execute(statement.on_conflict_do_update(index_elements=["name"], set_=there))

    def _delete_of(self, part: Part, ids: Sequence[str]) -> None:
        if not ids:
            return
        table = _TABLES[part]
        if part is Part.RESULTS:
            self._free_results(results.c.job_id.in_(ids))
        self._conn.execute(sa.delete(table).where(table.c.job_id.in_(ids)))
        self._mark(ids, part)

    def _purge_large(self, part: Part, row: Row[Any]) -> bool:
        self._mark([row.id], part)  # with the first piece: what is half there is not to be read
        return self._delete_piece(part, row.id)

    def _mark(self, ids: Sequence[str], *parts: Part) -> None:
        values = {_GONE_AT[part]: sa.func.coalesce(_GONE_AT[part], self._uow.now) for part in parts}
        self._conn.execute(sa.update(jobs).where(jobs.c.id.in_(ids)).values(values))

    def _delete_piece(self, part: Part, job_id: str) -> bool:
        """Delete a bounded number of rows of this part of a large job and its shards; whether nothing of it is left."""
        table = _TABLES[part]
        key = sa.tuple_(*table.primary_key.columns)
        for mine in (table.c.job_id == job_id, table.c.job_id.in_(_shards_of(job_id))):
            piece = sa.select(*table.primary_key.columns).where(mine).limit(MAX_ROWS)
            found = [tuple(row) for row in self._conn.execute(piece)]
            if found and part is Part.RESULTS:
                self._free_results(results.c.job_id.in_([row[0] for row in found]))
            if found and part is Part.INPUTS:
                self._free_inputs(job_inputs.c.job_id.in_([row[0] for row in found]))
            if found:
                self._conn.execute(sa.delete(table).where(key.in_(found)))
            if len(found) == MAX_ROWS:
                return False
        return True

    def _delete_pieces(self, row: Row[Any]) -> bool:
        """Delete what a large job has beside its row, a bounded number of rows at a time; whether nothing is left."""
        self._mark([row.id], *Part)
        for part in Part:
            if not self._delete_piece(part, row.id):
                return False
        shards = list(self._conn.execute(_shards_of(row.id).limit(MAX_ROWS)).scalars())
        self._conn.execute(sa.delete(attempts).where(attempts.c.job_id.in_(shards)))
        self._conn.execute(sa.delete(jobs).where(jobs.c.id.in_(shards)))
        return len(shards) < MAX_ROWS

    def _delete_jobs(self, rows: Sequence[Row[Any]]) -> None:
        ids = [row.id for row in rows]
        if not ids:
            return
        self._free_results(results.c.job_id.in_(ids))
        self.add_garbage(f"checkpoints/{row.id}" for row in rows if row.kind == JobKind.FINE_TUNE)
        for table in (events, attempts, results, job_inputs, checkpoints, notices):
            self._conn.execute(sa.delete(table).where(table.c.job_id.in_(ids)))
        self._conn.execute(sa.delete(jobs).where(jobs.c.id.in_(ids)))
        self._leave_traces(rows)

    def _free_results(self, mine: sa.ColumnElement[bool]) -> None:
        query = sa.select(results.c.blob_path).where(mine, results.c.blob_path.is_not(None))
        self.add_garbage(f"results/{path}" for path in self._conn.execute(query).scalars())

    def _free_inputs(self, mine: sa.ColumnElement[bool]) -> None:
        """The payloads of all shards of an attempt are one file: it goes with the first of them, as they all do."""
        query = sa.select(job_inputs.c.blob_path).distinct().where(mine, job_inputs.c.blob_path.is_not(None))
        self.add_garbage(f"inputs/{path}" for path in self._conn.execute(query).scalars())

    def _old_files(self, older_than_s: float | None) -> list[str]:
        now = self._uow.now
        conditions = [(files.c.expires_at, now)]
        if older_than_s is not None:
            conditions.append((files.c.created_at, now - older_than_s))
        found: list[str] = []
        for column, before in conditions:
            query = sa.select(files.c.id).where(column <= before).order_by(column).limit(MAX_JOBS)
            found += self._conn.execute(
                query if self._uow.is_sqlite else query.with_for_update(skip_locked=True)
            ).scalars()
        return list(dict.fromkeys(found))

    def _leave_traces(self, rows: Sequence[Any]) -> None:
        traces = [{"id": row.id, "project_id": row.project_id, "gone_at": self._uow.now} for row in rows]
        if traces:
            self._conn.execute(self._insert(gone).on_conflict_do_nothing(), traces)

    def _delete_some(self, key: Any, old: sa.Select[Any]) -> Step:
        table = (key if isinstance(key, sa.Column) else next(iter(key.clauses))).table
        found = [row[0] if len(row) == 1 else tuple(row) for row in self._conn.execute(old.limit(MAX_ROWS))]
        if found:
            self._conn.execute(sa.delete(table).where(key.in_(found)))
        return Step(len(found), may_be_more=len(found) == MAX_ROWS)


def ended_query(cutoff: float, *, beginning: tuple[float, str] | None = None) -> sa.Select[Any]:
    """Whole jobs that ended before the cutoff and behind `beginning`, by end; the partial index answers its head.

    Not those of whose end somebody is still to be told.
    """
    awaits_notice = sa.exists().where(notices.c.job_id == jobs.c.id, notices.c.status == "waiting")
    query = (
        sa.select(jobs.c.id, jobs.c.project_id, jobs.c.kind, jobs.c.finished_at, jobs.c.is_sharded)
        .where(
            jobs.c.finished_at.is_not(None),
            IS_WHOLE,
            jobs.c.finished_at < cutoff,
            sa.not_(awaits_notice),
            jobs.c.state.in_([str(state) for state in sorted(TERMINAL)]),
        )
        .order_by(jobs.c.finished_at, jobs.c.id)
        .limit(MAX_JOBS)
    )
    if beginning is not None:
        place = sa.tuple_(sa.literal(beginning[0]), sa.literal(beginning[1]))
        query = query.where(jobs.c.finished_at >= beginning[0], sa.tuple_(jobs.c.finished_at, jobs.c.id) > place)
    return query


def _is_large(row: Row[Any]) -> bool:
    """Jobs with shards, or with as many events as a training has steps: purged in pieces."""
    return bool(row.is_sharded) or row.kind == JobKind.FINE_TUNE


def _shards_of(job_id: str) -> sa.Select[tuple[str]]:
    return sa.select(jobs.c.id).where(jobs.c.parent_id == job_id)


def _utc(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
