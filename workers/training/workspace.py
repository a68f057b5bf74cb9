"""The folder of one attempt at a fine-tune: the base, the files, the checkpoint to go on from, the plan.

Everything in it can be made again; it is deleted when the attempt ends, and what a crash left when the node starts.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from models_store.cache import LocalCache
from models_store.checkpoints import CheckpointStore
from models_store.failures import translated
from models_store.file_blobs import FileBlobs
from models_store.store import ModelStore
from ondol.contract.errors import ChecksumMismatch, ContractError, ModelStoreError, NotFound
from ondol.contract.fine_tune import FineTuneOptions
from ondol.sql.database import Database
from ondol.sql.records import CheckpointRecord, ClaimedTraining
from workers.training.plan import (
    PLAN_FILE,
    BaseVersion,
    DataFile,
    DataFiles,
    TrainPlan,
    TrainReport,
    dump_plan,
)

log = structlog.get_logger(__name__)


class InputChanged(ContractError):
    """A file of the job was deleted, or is not what it was when the job was accepted."""

    code = "input_changed"


@dataclass(frozen=True, slots=True)
class Host:
    """Where a trainer node runs: its device, and what is passed on to every training there."""

    device: str
    cores: tuple[int, ...]
    threads: int
    gate: Path | None
    lock_fd: int | None = None
    """The lock of the device, which each training inherits: the device is held until the last of them is gone."""


@dataclass(frozen=True, slots=True)
class Stores:
    """Where files, models and checkpoints come from."""

    database: Database
    models: ModelStore
    cache: LocalCache
    files: FileBlobs
    checkpoints: CheckpointStore


class Workspace:
    """Use it in a `with` statement; blocking, and every store error passes through."""

    def __init__(self, root: Path, job: ClaimedTraining, stores: Stores, host: Host) -> None:
        self.folder = root / f"{job.id}-{job.attempt}"
        self.job = job
        self.options = FineTuneOptions.model_validate(job.options)
        self._stores = stores
        self._host = host
        self._pinned: str | None = None

    def __enter__(self) -> Workspace:
        shutil.rmtree(self.folder, ignore_errors=True)
        with translated(f"making the folder of {self.job.id}"):
            self.folder.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pinned is not None:
            self._stores.cache.unpin(self._pinned)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def plan_path(self) -> Path:
        """The plan file that the children are given."""
        return self.folder / PLAN_FILE

    def prepare(self) -> TrainPlan:
        """Bring base and files here and write the plan for the check. InputChanged, ModelNotFound, store errors."""
        job = self.job
        version = self._stores.database.read(lambda uow: uow.models.by_id(job.version_id))
        base = self._stores.cache.materialise(self._stores.models, version.manifest_digest, version.ref, pin=True)
        self._pinned = version.manifest_digest
        validation = self.options.validation_file
        files = DataFiles(
            self._bring_file(self.options.train_file, "options.train_file"),
            self._bring_file(validation, "options.validation_file") if validation else None,
        )
        plan = TrainPlan(
            job_id=job.id,
            attempt=job.attempt,
            base=BaseVersion(version.ref, base),
            files=files,
            options=self.options,
            work_dir=self.folder,
            device=self._host.device,
            threads=self._host.threads,
            cores=list(self._host.cores),
            gate=self._host.gate,
            output_ref_name=self.options.output_name,
            lineage=self._lineage(version.ref, version.manifest_digest),
        )
        return self.write(plan)

    def write(self, plan: TrainPlan) -> TrainPlan:
        """Write the plan file; the plan."""
        with translated(f"writing the plan of {self.job.id}"):
            self.plan_path.write_bytes(dump_plan(plan))
        return plan

    def to_train(
        self, plan: TrainPlan, report: TrainReport, *, threads: int, on_damage: Callable[[CheckpointRecord, str], None]
    ) -> TrainPlan:
        """The plan with its report and the newest checkpoint that is whole; damaged ones are reported and skipped."""
        known = self._stores.database.read(lambda uow: uow.checkpoints.of(self.job.id))
        resume_from = best_from = None
        newest: CheckpointRecord | None = None
        for record in known:
            resume_from = self._bring_checkpoint(record, "resume", on_damage)
            if resume_from is not None:
                newest = record
                break
        best = next((record for record in known if record.is_best and record != newest), None)
        if newest is not None and best is not None and best.step < newest.step:
            best_from = self._bring_checkpoint(best, "best", on_damage)
        return self.write(replace(plan, report=report, resume_from=resume_from, best_from=best_from, threads=threads))

    def _bring_file(self, file_id: str, param: str) -> DataFile:
        try:
            record = self._stores.database.read(
                lambda uow: uow.files.get(file_id, self.job.project_id, may_be_expired=True)
            )
            target = self.folder / f"data-{file_id}"
            if not target.exists():
                self._stores.files.fetch(file_id, target, sha256=record.sha256, size_bytes=record.size_bytes)
        except (NotFound, ChecksumMismatch) as exc:
            raise InputChanged(
                f"the file {file_id} is gone or has changed since the job was accepted", param=param
            ) from exc
        return DataFile(target, record.filename)

    def _bring_checkpoint(
        self, record: CheckpointRecord, name: str, on_damage: Callable[[CheckpointRecord, str], None]
    ) -> Path | None:
        target = self.folder / name / f"checkpoint-{record.step}"
        try:
            return self._stores.checkpoints.fetch(
                target,
                job_id=record.job_id,
                step=record.step,
                attempt=record.attempt,
                manifest_digest=record.manifest_digest,
            )
        except ModelStoreError as exc:
            if exc.retryable:
                raise
            on_damage(record, exc.message)
            return None

    def _lineage(self, base_ref: str, base_digest: str) -> dict[str, Any]:
        def digests(uow: Any) -> dict[str, str]:
            ids = [self.options.train_file, self.options.validation_file]
            project_id = self.job.project_id
            return {i: uow.files.get(i, project_id, may_be_expired=True).sha256 for i in ids if i is not None}

        return {
            "source": "fine-tune",
            "job_id": self.job.id,
            "base": base_ref,
            "base_digest": base_digest,
            "files": self._stores.database.read(digests),
            "seed": self.options.seed,
        }
