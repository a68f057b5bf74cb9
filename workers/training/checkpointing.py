"""Committing checkpoints while training goes on: files and manifest to the store, then the row; old ones deleted.

A thread of its own copies; everything else happens on the supervisor's thread.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from models_store.checkpoints import CheckpointStore, CommittedCheckpoint
from ondol.contract.errors import DatabaseUnavailable, ModelStoreError
from ondol.sql.database import Database
from ondol.sql.records import CheckpointRecord, ClaimedTraining
from workers.training.reporting import Reporter

log = structlog.get_logger(__name__)

KEPT_NEWEST = 2
"""The newest and the one before: if the newest turns out to be torn, the other is gone on from."""


@dataclass(frozen=True, slots=True)
class _Commit:
    step: int
    folder: Path
    metrics: dict[str, Any]
    is_best: bool
    future: Future[CommittedCheckpoint]


class Checkpointer:
    """The checkpoints of one attempt; `on_committed` gets the size in bytes of each. `close` in the end."""

    def __init__(
        self,
        store: CheckpointStore,
        database: Database,
        reporter: Reporter,
        job: ClaimedTraining,
        *,
        on_committed: Callable[[int], None],
    ) -> None:
        self._on_committed = on_committed
        self._store = store
        self._database = database
        self._reporter = reporter
        self._job = job
        self._open: deque[_Commit] = deque()
        self._local: dict[int, Path] = {}
        self._has_swept = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being committed."""
        return bool(self._open)

    def add(self, step: int, folder: Path, *, metrics: dict[str, Any], is_best: bool) -> None:
        """Begin to commit a complete folder, in which nothing changes any more."""
        job = self._job
        commit = partial(self._store.commit, folder, job_id=job.id, step=step, attempt=job.attempt)
        future = self._executor.submit(copy_context().run, commit)
        self._local[step] = folder
        self._open.append(_Commit(step, folder, metrics, is_best, future))

    def look(self) -> None:
        """Record what has been committed. Store errors (`storage_full` and the like) and StaleAttempt pass through."""
        while self._open and self._open[0].future.done():
            done = self._open.popleft()
            self._record(done, done.future.result())

    def close(self) -> None:
        """Wait for the running copy and forget the others."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _record(self, done: _Commit, committed: CommittedCheckpoint) -> None:
        job = self._job
        self._on_committed(committed.size_bytes)
        self._reporter.write(
            lambda uow: uow.checkpoints.add(
                job.id,
                job.attempt,
                step=done.step,
                manifest_digest=committed.manifest_digest,
                size_bytes=committed.size_bytes,
                metrics=done.metrics,
                is_best=done.is_best,
            )
        )
        self._reporter.say(
            f"the checkpoint of step {done.step} is committed",
            checkpoint={
                "step": done.step,
                "size_bytes": committed.size_bytes,
                "metrics": done.metrics,
                "is_best": done.is_best,
            },
        )
        if not self._reporter.has_unwritten:
            try:
                self._delete_old()
            except DatabaseUnavailable as exc:  # they go with the next checkpoint; the training is not to suffer
                log.warning("checkpoint.old_ones_stay", job_id=job.id, reason=exc.message)

    def _delete_old(self) -> None:
        """Keep the newest ones and the best; local copies likewise, for the child reads the best one in the end."""
        known = self._database.read(lambda uow: uow.checkpoints.of(self._job.id))
        if not known:
            return  # the job was cancelled and deleted just now
        old = [record for i, record in enumerate(known) if i >= KEPT_NEWEST and not record.is_best]
        for record in old:
            self._delete(record)
        kept = {record.step for record in known} - {record.step for record in old}
        for step in [step for step in self._local if step not in kept and step < known[0].step]:
            shutil.rmtree(self._local.pop(step), ignore_errors=True)
        if not self._has_swept:
            self._sweep(known)

    def _sweep(self, known: list[CheckpointRecord]) -> None:
        """Delete what earlier attempts stored and nobody knows: unrecorded ones, damaged ones, steps done again."""
        wanted = {(record.step, record.attempt) for record in known}
        try:
            self._store.delete_unknown(self._job.id, wanted, before_attempt=self._job.attempt)
        except ModelStoreError as exc:
            log.warning("checkpoint.not_swept", job_id=self._job.id, reason=exc.message)
            return
        self._has_swept = True

    def _delete(self, record: CheckpointRecord) -> None:
        try:
            self._store.delete(job_id=record.job_id, step=record.step, attempt=record.attempt)
        except ModelStoreError as exc:  # it takes up room until the job is deleted; the training is not to suffer
            log.warning("checkpoint.not_deleted", job_id=record.job_id, step=record.step, reason=exc.message)
            return
        self._database.write(lambda uow: uow.checkpoints.forget(record))
