"""Publishing a trained version: files to the store, then version, alias and result in one fenced transaction."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from models_store.manifest import Manifest
from models_store.store import ModelStore
from ondol.broker.wake import WakeBus
from ondol.contract.errors import StaleAttempt
from ondol.contract.model_spec import SPEC_FILE, parse_model_spec
from ondol.sql.database import Database
from ondol.sql.models import Published
from ondol.sql.records import ClaimedTraining, Completion, DtypeRecord
from ondol.sql.unit_of_work import UnitOfWork
from workers.training.child_process import Event
from workers.training.plan import TrainPlan

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished training: the child's last event, the plan it followed, and how long what took."""

    event: Event
    plan: TrainPlan
    alias_seen: str | None
    timings: dict[str, float]


class Publisher:
    """Publishes what a training child left. Store errors pass through; nothing is visible before the transaction."""

    def __init__(self, *, database: Database, store: ModelStore, wake: WakeBus, worker: str) -> None:
        self._database = database
        self._store = store
        self._wake = wake
        self._worker = worker

    def store_files(self, trained: Trained) -> Manifest:
        """Copy the version's files into the store; they are found by nobody yet. DatabaseUnavailable."""
        return self._store.publish_folder(
            _folder_of(trained),
            trained.plan.options.output_name,
            intend=lambda digest: self._database.write(lambda uow: uow.models.intend(digest)),
        )

    def record(self, job: ClaimedTraining, trained: Trained, manifest: Manifest) -> Published:
        """Version, alias, dtype and result, or nothing: StaleAttempt if the job has moved on, DatabaseUnavailable."""
        published = self._database.write(lambda uow: self._write(uow, job, trained, manifest))
        log.info("fine_tune.published", job_id=job.id, ref=published.version.ref, alias_moved=published.is_alias_moved)
        return published

    def _write(self, uow: UnitOfWork, job: ClaimedTraining, trained: Trained, manifest: Manifest) -> Published:
        options, event = trained.plan.options, trained.event
        uow.after_commit(lambda: self._wake.wake([job.id]))
        uow.after_commit(self._wake.alias_moved)
        before = uow.models.published_by(job.id, job.attempt, alias=options.alias)
        if before is not None:  # by a commit whose answer was lost
            return before
        spec_bytes = (_folder_of(trained) / SPEC_FILE).read_bytes()
        spec = parse_model_spec(spec_bytes, ref=options.output_name)
        published = uow.models.publish(
            project_id=job.project_id,
            name=options.output_name,
            task=spec.task,
            manifest_digest=manifest.digest,
            size_bytes=manifest.size_bytes,
            spec=json.loads(spec_bytes),
            job_id=job.id,
            attempt=job.attempt,
            lineage=trained.plan.lineage | {"metrics": event["metrics"], "resolved": job.resolved},
            base_version_id=job.version_id,
            alias=options.alias,
            alias_seen=trained.alias_seen,
        )
        if event.get("dtype"):
            uow.models.record_dtype(_dtype_record(manifest.digest, event["dtype"]))
        checkpoints = uow.checkpoints.of(job.id)
        result = {
            "object": "fine_tune.result",
            "model": published.version.ref,
            "task": spec.task,
            "metrics": event["metrics"],
            "best_step": event["best_step"],
            "steps": event["step"],
            "alias": _alias_json(published),
            "checkpoints": [
                {"step": c.step, "metrics": c.metrics, "is_best": c.is_best, "size_bytes": c.size_bytes}
                for c in checkpoints
            ],
            "files": [{"path": f.path, "size_bytes": f.size_bytes, "sha256": f.sha256} for f in manifest.files],
            "labels": list(spec.labels),
        }
        if published.alias is not None and not published.is_alias_moved:
            message = (
                f"the alias {published.alias} was moved to {published.alias_points_to} while this training ran; it is "
                f"left there: `ondol models alias {options.output_name} {published.alias} {published.version.number}`"
            )
            uow.events.append(job.id, attempt=job.attempt, type="message", data={"message": message, "level": "warn"})
        if not uow.attempts.complete([completion(job, result, trained.timings)], worker=self._worker):
            raise StaleAttempt(f"fine-tune {job.id} was overtaken; nothing is published")
        return published


def completion(job: ClaimedTraining, result: dict[str, Any], timings: dict[str, float]) -> Completion:
    """A result that is JSON alone."""
    data = json.dumps(result).encode()
    return Completion(
        job_id=job.id,
        attempt=job.attempt,
        summary={"kind": "fine-tune", "result": result, "num_tokens": 0},
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        tokens=0,
        timings=timings,
    )


def _folder_of(trained: Trained) -> Path:
    folder = Path(trained.event["folder"])
    return folder if folder.is_absolute() else trained.plan.work_dir / folder


def _alias_json(published: Published) -> dict[str, Any] | None:
    if published.alias is None:
        return None
    return {
        "name": published.alias,
        "is_moved": published.is_alias_moved,
        "points_to": published.alias_points_to,
    }


def _dtype_record(digest: str, found: dict[str, Any]) -> DtypeRecord:
    return DtypeRecord(
        manifest_digest=digest,
        device_kind=str(found["device_kind"]),
        engine="torch",
        dtype=str(found["dtype"]),
        fidelity=found["fidelity"],
        is_packed=bool(found["is_packed"]),
    )
