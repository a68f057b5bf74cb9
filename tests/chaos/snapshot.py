"""What SQL and the store say when everything has come to rest, as plain data that a checker can be given by hand."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa

from models_store.store import ModelStore
from ondol.contract.errors import ModelStoreError
from ondol.sql.database import Database
from ondol.sql.tables import attempts, events, jobs, messages, repairs, results, sessions, usage, versions
from ondol.sql.unit_of_work import UnitOfWork


@dataclass(frozen=True, slots=True)
class Job:
    """A row of `jobs`; a shard has a `parent_id`."""

    id: str
    state: str
    kind: str = "embedding"
    attempt: int = 0
    event_seq: int = 0
    tag: str | None = None
    parent_id: str | None = None
    first_input: int | None = None
    num_inputs: int = 1
    is_sharded: bool = False
    error_code: str | None = None
    deadline_at: float | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of `attempts`; times in seconds by the database's clock."""

    job_id: str
    attempt: int
    session_id: str
    worker: str
    started_at: float
    finished_at: float | None
    outcome: str | None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A row of `events`."""

    seq: int
    type: str
    at: float = 0.0
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """A row of `results`; `vectors` [N, 32] of an embedding whose bytes stand in SQL, else None."""

    job_id: str
    attempt: int
    num_tokens: int = 0
    vectors: np.ndarray[Any, Any] | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A row of `sessions`."""

    id: str
    worker: str
    started_at: float
    ended_at: float | None
    end_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """A row of `versions`; `is_whole`: its manifest and all files that it names are in the store."""

    id: str
    job_id: str | None
    attempt: int | None
    is_whole: bool = True


@dataclass(slots=True)
class Snapshot:
    """All of it. `num_call_tokens`: what the usage table counts; `has_canary`: whether Redis bears the canary key."""

    jobs: dict[str, Job] = field(default_factory=dict)
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    events: dict[str, list[Event]] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    sessions: list[Session] = field(default_factory=list)
    versions: list[Version] = field(default_factory=list)
    repairs: dict[str, int] = field(default_factory=dict)
    num_messages: int = 0
    num_call_tokens: int = 0
    has_canary: bool = True


def take(database: Database, store: ModelStore, *, has_canary: bool) -> Snapshot:
    """Read everything; the system must be at rest."""
    found = database.read(_read)
    found.has_canary = has_canary
    whole: list[Version] = []
    for version, digest in database.read(_versions):
        whole.append(Version(version.id, version.job_id, version.attempt, is_whole(store, digest)))
    found.versions = whole
    return found


def is_whole(store: ModelStore, digest: str) -> bool:
    """Whether the store has the manifest and every file that it names, with the right bytes."""
    from models_store.copying import hash_file

    try:
        manifest = store.read_manifest(digest)
    except ModelStoreError:
        return False
    for file in manifest.files:
        path = store.local_blob(file.sha256)
        if path is None or not path.is_file() or hash_file(path) != file.sha256:
            return False
    return True


def num_unfinished(database: Database) -> int:
    """Jobs and shards that have not ended."""
    query = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.finished_at.is_(None))
    return database.read(lambda uow: int(uow.conn.execute(query).scalar_one()))


def num_messages(database: Database) -> int:
    """Messages that are rung and not finished."""
    query = sa.select(sa.func.count()).select_from(messages)
    return database.read(lambda uow: int(uow.conn.execute(query).scalar_one()))


def _read(uow: UnitOfWork) -> Snapshot:
    conn = uow.conn
    found = Snapshot()
    for row in conn.execute(sa.select(jobs)):
        found.jobs[row.id] = Job(
            id=row.id,
            state=row.state,
            kind=row.kind,
            attempt=row.attempt,
            event_seq=row.event_seq,
            tag=row.job_metadata.get("tag"),
            parent_id=row.parent_id,
            first_input=row.first_input,
            num_inputs=row.num_inputs,
            is_sharded=row.is_sharded,
            error_code=row.error["code"] if row.error else None,
            deadline_at=row.deadline_at,
        )
    by_job: defaultdict[str, list[Attempt]] = defaultdict(list)
    for row in conn.execute(sa.select(attempts).order_by(attempts.c.job_id, attempts.c.attempt)):
        attempt = Attempt(
            row.job_id,
            row.attempt,
            row.session_id,
            row.worker,
            row.started_at,
            row.finished_at,
            row.outcome,
            row.tokens,
        )
        by_job[row.job_id].append(attempt)
    found.attempts = dict(by_job)
    told: defaultdict[str, list[Event]] = defaultdict(list)
    for row in conn.execute(sa.select(events).order_by(events.c.job_id, events.c.seq)):
        told[row.job_id].append(Event(row.seq, row.type, row.created_at, row.data))
    found.events = dict(told)
    for row in conn.execute(sa.select(results)):
        found.results[row.job_id] = Result(
            row.job_id, row.attempt, int(row.summary.get("num_tokens", 0)), _vectors(row.summary, row.data)
        )
    for row in conn.execute(sa.select(sessions)):
        found.sessions.append(Session(row.id, row.worker, row.started_at, row.ended_at, row.end_reason))
    found.repairs = {row.kind: int(row.total) for row in conn.execute(sa.select(repairs))}
    found.num_messages = int(conn.execute(sa.select(sa.func.count()).select_from(messages)).scalar_one())
    tokens = sa.select(sa.func.coalesce(sa.func.sum(usage.c.num_tokens), 0))
    found.num_call_tokens = int(conn.execute(tokens).scalar_one())
    return found


def _versions(uow: UnitOfWork) -> list[tuple[Version, str]]:
    return [
        (Version(row.id, row.job_id, row.attempt), row.manifest_digest) for row in uow.conn.execute(sa.select(versions))
    ]


def _vectors(summary: dict[str, Any], data: bytes | None) -> np.ndarray[Any, Any] | None:
    if data is None or summary.get("kind") != "embedding" or not summary.get("shape"):
        return None
    return np.frombuffer(bytes(data), dtype="<f4").reshape(summary["shape"])
