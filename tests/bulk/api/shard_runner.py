"""Runs the shards of jobs one at a time, by the protocol of a worker, with arithmetic for a model."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from models_store.input_blobs import InputBlobs
from ondol.contract.states import JobState
from ondol.sql.database import Database
from ondol.sql.records import ClaimedJob, Failure, InputBlob, NewShard
from ondol.sql.ringing import WindowLimits
from ondol.sql.tables import jobs, messages
from tests.http.peer_worker import PeerWorker

ONE_JOB = WindowLimits(messages=1, bulk_messages=1, message_jobs=1)

_names = itertools.count(1)
_CANCEL_LEFTOVERS = sa.update(jobs).where(jobs.c.state == JobState.QUEUED).values(state=JobState.CANCELLED)


class ShardRunner:
    """One worker, which is ready from the first claim on."""

    def __init__(self, database: Database, redis_url: str, *, store_url: str) -> None:
        self._database = database
        self._inputs = InputBlobs(store_url)
        self._redis_url = redis_url
        self._peer: PeerWorker | None = None
        self._claimed: list[ClaimedJob] = []
        database.write(lambda uow: uow.conn.execute(_CANCEL_LEFTOVERS))

    def close(self) -> None:
        """End the worker."""
        if self._peer is not None:
            self._peer.close()

    def claim(self) -> ClaimedJob | None:
        """The next job or shard, claimed; None when nothing waits."""
        if self._peer is None:  # only now: what was accepted before is rung here, and by nobody else
            self._peer = PeerWorker(self._database, self._redis_url, f"bulk{next(_names)}@test")
        if not self._claimed:
            self._claim_message(self._peer)
        return self._claimed.pop(0) if self._claimed else None

    def _claim_message(self, peer: PeerWorker) -> None:
        """Claim what the next message names, whoever rang it."""
        database = self._database
        database.write(lambda uow: uow.ringing.choose(ONE_JOB))
        rung = sa.select(messages.c.id).where(messages.c.worker == peer.name).order_by(messages.c.id).limit(1)
        message_id = database.read(lambda uow: uow.conn.execute(rung).scalar())
        if message_id is not None:
            self._claimed = database.write(
                lambda uow: uow.attempts.claim(message_id, session_id=peer.session_id, worker=peer.name)
            )
            database.write(lambda uow: uow.ringing.finish(message_id))

    def complete(self, job: ClaimedJob, *, errors: dict[str, Any] | None = None) -> None:
        """Record its result."""
        assert self._peer is not None
        if job.input_blob is not None:
            job = replace(job, payload=self._inputs.read(job.input_blob))
        self._peer.complete([job], errors=errors)

    def fail(self, job: ClaimedJob, error: dict[str, Any]) -> None:
        """Fail it for good."""
        self._database.write(lambda uow: uow.attempts.fail([Failure(job.id, job.attempt, error)], max_retries=0))

    def run(self, num: int | None = None, *, errors: dict[str, Any] | None = None) -> list[ClaimedJob]:
        """Run the next `num` shards, or all that wait; `errors` are those of the first."""
        done: list[ClaimedJob] = []
        while (num is None or len(done) < num) and (job := self.claim()) is not None:
            self.complete(job, errors=None if done else errors)
            done.append(job)
        return done

    def plan(self, job: ClaimedJob, parts: Sequence[tuple[list[str], list[Any]]]) -> None:
        """Cut a claimed job into shards of (texts, ids), as the planner of its file does."""
        payloads = [json.dumps({"inputs": texts, "ids": ids}).encode() for texts, ids in parts]
        path = self._inputs.write(job.id, job.attempt, payloads)
        shards, offset, first = [], 0, 0
        for number, (payload, (texts, _)) in enumerate(zip(payloads, parts, strict=True)):
            blob = InputBlob(path, offset, len(payload), hashlib.sha256(payload).hexdigest())
            shards.append(NewShard(number, first, len(texts), 10, blob=blob))
            offset, first = offset + len(payload), first + len(texts)
        assert self._database.write(
            lambda uow: uow.shards.record(job.id, job.attempt, shards, num_inputs=first, estimated_tokens=10)
        )
