"""Rows of the `jobs` table: how a new job and a new shard are written, and how a row is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from ondol.contract.ids import shard_id
from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState, Priority
from ondol.sql.records import JobRecord, JsonObject, NewJob, NewShard
from ondol.sql.tables import attempts, jobs

INHERITED = ("project_id", "kind", "priority", "version_id", "model_ref", "options", "run_after", "deadline_at")
"""Columns that a shard has from its job."""

_FRESH: dict[str, Any] = {
    "state": JobState.QUEUED.value,
    "job_metadata": {},
    "num_done": 0,
    "attempt": 0,
    "num_retries": 0,
    "num_lapses": 0,
    "num_losses": 0,
    "is_alone": False,
    "event_seq": 1,
    "is_call": False,
    "task_id": None,
    "ignores_result": None,
    "webhook": None,
    "is_sharded": False,
    "parent_id": None,
    "first_input": None,
    "num_open_shards": None,
    "input_file_id": None,
    "batch": None,
}
"""What a row begins with; named here, because defaults of the table cost a look-up for each column of each row."""
_NO_BLOB = {"blob_path": None, "blob_offset": None, "blob_size": None, "sha256": None}
JOB_COLUMNS = (
    *_FRESH,
    *("id", "project_id", "kind", "priority", "version_id", "model_ref", "options", "num_inputs"),
    *("estimated_tokens", "created_at", "run_after", "deadline_at"),
)
"""What a new row names; the other columns are null."""


def job_row(job: NewJob, now: float) -> dict[str, Any]:
    """The row of a job that is recorded now."""
    return {
        **_FRESH,
        "id": job.id,
        "project_id": job.project_id,
        "kind": job.kind.value,
        "state": job.state.value,
        "priority": job.priority.value,
        "version_id": job.version_id,
        "model_ref": job.model_ref,
        "options": job.options,
        "job_metadata": job.metadata,
        "num_inputs": job.num_inputs,
        "estimated_tokens": job.estimated_tokens,
        "created_at": now,
        "run_after": job.run_after if job.run_after is not None else now,
        "deadline_at": now + job.deadline_s if job.deadline_s is not None else None,
        "task_id": job.task_id,
        "ignores_result": job.ignores_result,
        "webhook": job.webhook,
        "is_sharded": bool(job.shards),
        "num_open_shards": len(job.shards) or None,
        "input_file_id": job.input_file_id,
        "batch": job.batch,
    }


def shard_row(parent_id: str, parent: Mapping[str, Any], shard: NewShard, now: float) -> dict[str, Any]:
    """The row of a shard that is recorded now; `parent` has the columns in `INHERITED`."""
    return {
        **_FRESH,
        **{name: parent[name] for name in INHERITED},
        "id": shard_id(parent_id, shard.number),
        "num_inputs": shard.num_inputs,
        "estimated_tokens": shard.estimated_tokens,
        "created_at": now,
        "parent_id": parent_id,
        "first_input": shard.first_input,
    }


def input_row(job_id: str, new: NewJob | NewShard) -> dict[str, Any]:
    """The row of a job's or shard's input."""
    row: dict[str, Any] = {"job_id": job_id, "payload": new.payload, **_NO_BLOB}
    if isinstance(new, NewShard) and new.blob is not None:
        blob = new.blob
        row |= {"blob_path": blob.path, "blob_offset": blob.offset, "blob_size": blob.size, "sha256": blob.sha256}
    return row


def record_of_new(job: NewJob, row: Mapping[str, Any]) -> JobRecord:
    """The job as it was just recorded."""
    return JobRecord(
        id=job.id,
        project_id=job.project_id,
        kind=job.kind,
        state=job.state,
        priority=job.priority,
        model_ref=job.model_ref,
        metadata=job.metadata,
        num_inputs=job.num_inputs,
        num_done=0,
        created_at=row["created_at"],
        run_after=row["run_after"],
        deadline_at=row["deadline_at"],
        started_at=None,
        finished_at=None,
        attempt=0,
        worker=None,
        tokens=None,
        timings=None,
        error=None,
        event_seq=1,
        task_id=job.task_id,
        webhook=job.webhook,
        options=job.options,
        is_sharded=row["is_sharded"],
        input_file_id=job.input_file_id,
        batch=job.batch,
    )


def job_query() -> sa.Select[Any]:
    """Whole jobs with their latest attempts, to be read by `record_of`: nobody outside sees shards."""
    latest = sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.attempt == jobs.c.attempt)
    return (
        sa.select(
            jobs,
            attempts.c.worker,
            attempts.c.tokens,
            attempts.c.timings.label("attempt_timings"),
            attempts.c.message_id.label("attempt_message_id"),
        )
        .select_from(jobs.outerjoin(attempts, latest))
        .where(jobs.c.parent_id.is_(None))
    )


def record_of(row: Row[Any], shard_tokens: Mapping[str, int]) -> JobRecord:
    """The job of a row of `job_query`; what ran of a sharded job are its shards, which had these tokens together."""
    worker: str | None = row.worker
    tokens: int | None = row.tokens
    timings: JsonObject | None = row.attempt_timings
    if row.is_sharded:
        worker, tokens, timings = None, shard_tokens.get(row.id), None
    return JobRecord(
        id=row.id,
        project_id=row.project_id,
        kind=JobKind(row.kind),
        state=JobState(row.state),
        priority=Priority(row.priority),
        model_ref=row.model_ref,
        metadata=row.job_metadata,
        num_inputs=row.num_inputs,
        num_done=row.num_done,
        created_at=row.created_at,
        run_after=row.run_after,
        deadline_at=row.deadline_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        attempt=row.attempt,
        worker=worker,
        tokens=tokens,
        timings=timings,
        error=row.error,
        event_seq=row.event_seq,
        resolved=row.resolved,
        pause_requested_at=row.pause_requested_at,
        device_released_at=row.device_released_at,
        task_id=row.task_id,
        webhook=row.webhook,
        message_id=row.attempt_message_id,
        options=row.options,
        is_sharded=row.is_sharded,
        input_file_id=row.input_file_id,
        batch=row.batch,
    )
