"""Shards: the slices of a job's inputs that run as job rows of their own (decision 15), and what they do to their job.

Whoever changes the state of a shard locks its job's row first (`lock_parents`), so that nobody waits in a circle, and
a shard stands still for whoever holds its job.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from ondol.contract.ids import parent_of
from ondol.contract.states import JobState, Reason
from ondol.sql.job_rows import INHERITED, input_row, shard_row
from ondol.sql.records import FreedBlobs, InputBlob, JsonObject, NewShard, ResultRecord, ShardRecord
from ondol.sql.results import result_of
from ondol.sql.tables import attempts, events, job_inputs, jobs, results

if TYPE_CHECKING:
    from ondol.sql.unit_of_work import UnitOfWork

PLANNED = "planned"
"""The outcome of an attempt that has cut its job into shards."""
_OF_ONE_INPUT_EACH = ("tokens", "truncated", "errors", "lengths", "special_tokens", "ids")
_SUMMARIES_AT_ONCE = 64
_OPEN = (JobState.QUEUED, JobState.RUNNING)


def parents_of(ids: Iterable[str]) -> list[str]:
    """The jobs whose shards are among the ids, each once, in the order in which they are locked."""
    return sorted({parent for job_id in ids if (parent := parent_of(job_id)) is not None})


class ShardRepository:
    """Recording, reading and settling the shards of sharded jobs."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._conn = uow.conn

    def record(
        self, parent_id: str, attempt: int, shards: Sequence[NewShard], *, num_inputs: int, estimated_tokens: int
    ) -> bool:
        """The attempt has planned the job: record its shards (one or more) and close it; False when it is stale.

        The job stays `running`, held by no session. Safe to run again after a commit that was not answered, however
        long ago: an attempt that has planned is told so, or its caller would remove the payloads of recorded shards.
        """
        assert shards
        statement = (
            sa.update(jobs)
            .where(
                jobs.c.id == parent_id,
                jobs.c.attempt == attempt,
                jobs.c.state == JobState.RUNNING,
                sa.not_(jobs.c.is_sharded),
            )
            .values(
                is_sharded=True,
                num_inputs=num_inputs,
                estimated_tokens=estimated_tokens,
                num_open_shards=len(shards),
                session_id=None,
                message_id=None,
            )
            .returning(*(jobs.c[name] for name in INHERITED))
        )
        parent = self._conn.execute(statement).mappings().one_or_none()
        if parent is None:
            return self._is_planned(parent_id, attempt)
        now = self._uow.now
        inherited = {name: parent[name] for name in INHERITED}
        rows = [shard_row(parent_id, inherited, shard, now) for shard in shards]
        self._uow.jobs.insert(rows, [input_row(row["id"], shard) for row, shard in zip(rows, shards, strict=True)])
        self._uow.events.add_states([(row["id"], 1) for row in rows], after=JobState.QUEUED, reason=Reason.ACCEPTED)
        self._uow.attempts.close_attempt(parent_id, attempt, PLANNED)
        return True

    def page(self, parent_id: str, *, from_input: int = 0, limit: int = 16) -> list[ShardRecord]:
        """Shards in the order of their inputs, from the one that holds input `from_input` on, with their results."""
        holder = (
            sa.select(sa.func.max(jobs.c.first_input))
            .where(jobs.c.parent_id == parent_id, jobs.c.first_input <= from_input)
            .scalar_subquery()
        )
        query = (
            sa.select(
                jobs.c.id,
                jobs.c.first_input,
                jobs.c.num_inputs,
                jobs.c.state,
                jobs.c.error,
                *(results.c[name] for name in ("job_id", "attempt", "summary", "sha256", "size_bytes")),
                results.c.data,
                results.c.blob_path,
                job_inputs.c.blob_path.label("input_path"),
                job_inputs.c.blob_offset,
                job_inputs.c.blob_size,
                job_inputs.c.sha256.label("input_sha256"),
            )
            .select_from(
                jobs.outerjoin(results, results.c.job_id == jobs.c.id).outerjoin(
                    job_inputs, job_inputs.c.job_id == jobs.c.id
                )
            )
            .where(jobs.c.parent_id == parent_id, jobs.c.first_input >= sa.func.coalesce(holder, 0))
            .order_by(jobs.c.first_input)
            .limit(limit)
        )
        rows: Sequence[Any] = self._conn.execute(query).all()
        return [_shard(row) for row in rows]

    def tokens_of(self, ended: Mapping[str, JobState]) -> dict[str, int]:
        """How many tokens the shards of each of these sharded jobs have run, which have ended in these states.

        Not for jobs that go on: they are looked at whenever a shard ends, and this may look at all shards.
        """
        summed_up = [job_id for job_id, state in ended.items() if state is JobState.SUCCEEDED]
        cut_short = [job_id for job_id, state in ended.items() if state is JobState.CANCELLED]
        found = self._uow.results.summaries(summed_up) if summed_up else {}
        tokens = {job_id: int(summary["num_tokens"]) for job_id, summary in found.items()}
        if cut_short:
            latest = sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.attempt == jobs.c.attempt)
            query = (
                sa.select(jobs.c.parent_id, sa.func.sum(attempts.c.tokens).label("num"))
                .join(attempts, latest)
                .where(jobs.c.parent_id.in_(cut_short), attempts.c.tokens.is_not(None))
                .group_by(jobs.c.parent_id)
            )
            tokens |= {row.parent_id: int(row.num) for row in self._conn.execute(query)}
        return tokens

    def lock_parents(self, parent_ids: Sequence[str]) -> None:
        """Hold the rows of these jobs (`parents_of`), before their shards are touched."""
        if not parent_ids or self._uow.is_sqlite:  # there, one transaction at a time writes
            return
        query = sa.select(jobs.c.id).where(jobs.c.id.in_(parent_ids)).order_by(jobs.c.id)
        self._conn.execute(query.with_for_update(key_share=True)).all()

    def begin(self, parent_ids: Sequence[str]) -> None:
        """Shards of these jobs were claimed: those of the jobs that were queued run now."""
        if not parent_ids:
            return
        statement = (
            sa.update(jobs)
            .where(jobs.c.id.in_(parent_ids), jobs.c.state == JobState.QUEUED)
            .values(state=JobState.RUNNING, started_at=self._uow.now, event_seq=jobs.c.event_seq + 1)
            .returning(jobs.c.id, jobs.c.event_seq, jobs.c.attempt)
        )
        rows = self._conn.execute(statement).all()
        self._uow.events.add_states(
            [(row.id, row.event_seq) for row in rows],
            before=JobState.QUEUED,
            after=JobState.RUNNING,
            reason=Reason.SHARD_CLAIMED,
            attempt=[row.attempt for row in rows],
        )

    def settle(self, ids: Sequence[str]) -> None:
        """These shards have succeeded or failed for good, results and all: their jobs learn it, and end with the last.

        Inputs of a failed shard count as done: nothing more happens to them. A shard's turn costs the same however
        many its job has; the last one pays for the summary of all.
        """
        query = (
            sa.select(jobs.c.parent_id, jobs.c.num_inputs)
            .where(jobs.c.id.in_(ids))
            .order_by(jobs.c.parent_id, jobs.c.first_input)
        )
        for parent_id, rows in groupby(self._conn.execute(query).all(), key=lambda row: str(row.parent_id)):
            self._count_down(parent_id, [row.num_inputs for row in rows])

    def cancel(self, parent_id: str) -> None:
        """Cancel what is unfinished of a job that was just cancelled, attempts and all."""
        for before in _OPEN:
            statement = (
                sa.update(jobs)
                .where(jobs.c.parent_id == parent_id, jobs.c.state == before)
                .values(
                    state=JobState.CANCELLED,
                    finished_at=self._uow.now,
                    event_seq=jobs.c.event_seq + 1,
                    message_id=None,
                    session_id=None,
                )
                .returning(jobs.c.id, jobs.c.event_seq, jobs.c.attempt)
            )
            rows = self._conn.execute(statement).all()
            self._uow.events.add_states(
                [(row.id, row.event_seq) for row in rows],
                before=before,
                after=JobState.CANCELLED,
                reason=Reason.CANCEL_REQUESTED,
                attempt=[row.attempt for row in rows],
            )
        self._conn.execute(
            sa.update(attempts)
            .where(attempts.c.job_id.in_(_ids_of(parent_id)), attempts.c.finished_at.is_(None))
            .values(finished_at=self._uow.now, outcome="cancelled")
        )

    def retry(self, parent_id: str, values: JsonObject) -> None:
        """Queue the failed shards of a job that was just queued again; `values` are the columns that begin anew."""
        statement = (
            sa.update(jobs)
            .where(jobs.c.parent_id == parent_id, jobs.c.state == JobState.FAILED)
            .values(state=JobState.QUEUED, event_seq=jobs.c.event_seq + 1, **values)
            .returning(jobs.c.id, jobs.c.event_seq, jobs.c.attempt, jobs.c.num_inputs)
        )
        rows = self._conn.execute(statement).all()
        self._uow.events.add_states(
            [(row.id, row.event_seq) for row in rows],
            before=JobState.FAILED,
            after=JobState.QUEUED,
            reason=Reason.RETRY_REQUESTED,
            attempt=[row.attempt for row in rows],
        )
        num_inputs = sum(row.num_inputs for row in rows)
        self._conn.execute(
            sa.update(jobs)
            .where(jobs.c.id == parent_id)
            .values(num_open_shards=len(rows), num_done=jobs.c.num_done - num_inputs)
        )

    def delete(self, parent_id: str) -> FreedBlobs:
        """Delete all shards of a job that has ended; the files that only they named."""
        mine = _ids_of(parent_id)
        found = sa.select(results.c.blob_path).where(results.c.job_id.in_(mine), results.c.blob_path.is_not(None))
        given = (
            sa.select(job_inputs.c.blob_path)
            .distinct()
            .where(job_inputs.c.job_id.in_(mine), job_inputs.c.blob_path.is_not(None))
        )
        freed = FreedBlobs(
            results=tuple(self._conn.execute(found.order_by(results.c.job_id)).scalars()),
            inputs=tuple(sorted(self._conn.execute(given).scalars())),
        )
        for table in (events, attempts, results, job_inputs):
            self._conn.execute(sa.delete(table).where(table.c.job_id.in_(mine)))
        self._conn.execute(sa.delete(jobs).where(jobs.c.parent_id == parent_id))
        return freed

    def _is_planned(self, parent_id: str, attempt: int) -> bool:
        query = sa.select(attempts.c.outcome).where(attempts.c.job_id == parent_id, attempts.c.attempt == attempt)
        return self._conn.execute(query).scalar() == PLANNED

    def _count_down(self, parent_id: str, sizes: Sequence[int]) -> None:
        statement = (
            sa.update(jobs)
            .where(jobs.c.id == parent_id, jobs.c.state.in_(_OPEN))
            .values(
                num_done=jobs.c.num_done + sum(sizes),
                num_open_shards=jobs.c.num_open_shards - len(sizes),
                event_seq=jobs.c.event_seq + len(sizes),
            )
            .returning(
                jobs.c.id,
                jobs.c.state,
                jobs.c.attempt,
                jobs.c.event_seq,
                jobs.c.num_inputs,
                jobs.c.num_done,
                jobs.c.num_open_shards,
            )
        )
        parent = self._conn.execute(statement).one_or_none()
        if parent is None:  # ended otherwise, and its shards with it: nothing is left to be told
            return
        done, seq, told = parent.num_done - sum(sizes), parent.event_seq - len(sizes), []
        for size in sizes:
            done, seq = done + size, seq + 1
            data = {"done": done, "total": parent.num_inputs, "unit": "inputs"}
            told.append(
                {"job_id": parent_id, "seq": seq, "created_at": self._uow.now, "type": "progress", "data": data}
            )
        self._uow.events.insert(told)
        if parent.num_open_shards == 0:
            self._end(parent)

    def _end(self, parent: Row[Any]) -> None:
        """The last shard has ended: so does the job, with what its shards have found, or with the first one's error."""
        result = self._result_of_all(parent)
        after = JobState.FAILED if result is None else JobState.SUCCEEDED
        statement = (
            sa.update(jobs)
            .where(jobs.c.id == parent.id)
            .values(
                state=after,
                finished_at=self._uow.now,
                error=self._first_error(parent.id) if result is None else None,
                event_seq=jobs.c.event_seq + 1,
            )
            .returning(jobs.c.event_seq)
        )
        seq = self._conn.execute(statement).scalar_one()
        if result is not None:
            self._conn.execute(sa.insert(results), [result])
        self._uow.events.add_states(
            [(parent.id, seq)],
            before=JobState(parent.state),
            after=after,
            reason=Reason.SHARDS_ENDED,
            attempt=parent.attempt,
        )

    def _first_error(self, parent_id: str) -> JsonObject | None:
        query = (
            sa.select(jobs.c.error)
            .where(jobs.c.parent_id == parent_id, jobs.c.state == JobState.FAILED)
            .order_by(jobs.c.first_input)
            .limit(1)
        )
        error: JsonObject | None = self._conn.execute(query).scalar_one()
        return error

    def _result_of_all(self, parent: Row[Any]) -> JsonObject | None:
        """The row in `results` that sums up the shards' (no bytes, which stay with them); None if there are none.

        Read a few at a time: together, the lists of a million inputs would be held in memory.
        """
        query = (
            sa.select(jobs.c.num_inputs, results.c.summary, results.c.sha256, results.c.size_bytes, attempts.c.tokens)
            .join(results, results.c.job_id == jobs.c.id)
            .join(attempts, sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.attempt == results.c.attempt))
            .where(jobs.c.parent_id == parent.id, jobs.c.state == JobState.SUCCEEDED)
            .order_by(jobs.c.first_input)
        )
        first: JsonObject | None = None
        digest = hashlib.sha256()
        size_bytes = num_tokens = num_answers = 0
        for row in self._conn.execute(query, execution_options={"yield_per": _SUMMARIES_AT_ONCE}):
            first = first or {name: value for name, value in row.summary.items() if name not in _OF_ONE_INPUT_EACH}
            digest.update(row.sha256.encode())
            size_bytes += row.size_bytes
            num_tokens += row.tokens or 0
            num_answers += row.num_inputs - len(row.summary.get("errors", ()))
        if first is None:
            return None
        if "shape" in first:
            first["shape"] = [parent.num_inputs, *first["shape"][1:]]
        counts = {"num_tokens": num_tokens, "num_errors": parent.num_inputs - num_answers, "is_sharded": True}
        return {
            "job_id": parent.id,
            "attempt": parent.attempt,
            "created_at": self._uow.now,
            "summary": first | counts,
            "size_bytes": size_bytes,
            "sha256": digest.hexdigest(),
        }


def _ids_of(parent_id: str) -> sa.Select[tuple[str]]:
    return sa.select(jobs.c.id).where(jobs.c.parent_id == parent_id)


def _shard(row: Row[Any]) -> ShardRecord:
    result: ResultRecord | None = None if row.job_id is None else result_of(row)
    number = int(row.id.rpartition(".")[2])
    blob = None
    if row.input_path is not None:
        blob = InputBlob(row.input_path, row.blob_offset, row.blob_size, row.input_sha256)
    return ShardRecord(row.id, number, row.first_input, row.num_inputs, JobState(row.state), row.error, result, blob)
