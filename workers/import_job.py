"""Import jobs: convert and check in a child, store, probe on the device, then version and result in one transaction."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextvars import copy_context
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import structlog

from models_store.manifest import Manifest
from models_store.store import ModelStore
from ondol.broker.wake import WakeBus
from ondol.contract.errors import ModelRefused, StaleAttempt
from ondol.contract.model_spec import SPEC_FILE, ModelSpec, dump_model_spec
from ondol.contract.payloads import ImportInput, ImportOptions
from ondol.sql.database import Database
from ondol.sql.records import ClaimedJob, Completion, DtypeRecord
from ondol.sql.unit_of_work import UnitOfWork
from workers.importing.run import run_import
from workers.model_library import ModelLibrary

log = structlog.get_logger(__name__)

IMPORT_LIMIT_S = 900.0
_LOOK_S = 0.2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import has made: files in the store, and what the device says of them."""

    spec: ModelSpec
    manifest: Manifest
    probed: DtypeRecord


class ImportRunner:
    """Runs one import at a time a handler thread; everything half-done is below `staging`, this worker's own folder.

    `worker` is its name, for messages.
    """

    def __init__(
        self, *, database: Database, store: ModelStore, library: ModelLibrary, wake: WakeBus, staging: Path, worker: str
    ) -> None:
        self._database = database
        self._store = store
        self._library = library
        self._wake = wake
        self._staging = staging
        self._worker = worker
        shutil.rmtree(staging, ignore_errors=True)  # what an import left that ended with its worker

    def run(self, job: ClaimedJob, *, must_end: Callable[[], bool]) -> bool:
        """Import and record; blocks. Call from a thread that lives on: the child ends with it.

        False: `must_end` came true first, its child is gone, and nothing is published. Raises OndolError (ModelRefused
        and the like) when nothing was published.
        """
        source = Path(ImportInput.model_validate_json(job.payload).path)
        options = ImportOptions.model_validate(job.options)
        if not _is_folder(source):
            raise ModelRefused(
                f"the worker {self._worker} has no folder {source}, or none that it may read; any worker may run an"
                " import, so name a folder that all of them see, in containers one below /import"
            )
        started_at = time.monotonic()
        self._staging.mkdir(parents=True, exist_ok=True)
        target = Path(tempfile.mkdtemp(prefix=f"{job.id}-", dir=self._staging)) / "model"
        try:
            made = self._make(source, target, job, options, must_end)
        finally:
            shutil.rmtree(target.parent, ignore_errors=True)
        if made is None:
            log.warning("import.given_up", job_id=job.id)
            return False
        ref = self._publish(job, options.name, made, time.monotonic() - started_at)
        log.info("import.published", job_id=job.id, ref=ref, dtype=made.probed.dtype, is_packed=made.probed.is_packed)
        return True

    def _make(
        self, source: Path, target: Path, job: ClaimedJob, options: ImportOptions, must_end: Callable[[], bool]
    ) -> Imported | None:
        """The version's files in the store, found by nobody yet; None when `must_end` came true before they were."""
        spec = run_import(source, target, convert_bin=options.convert_bin, timeout_s=IMPORT_LIMIT_S, must_end=must_end)
        if spec is None or must_end():
            return None
        if not (target / SPEC_FILE).exists():
            (target / SPEC_FILE).write_bytes(dump_model_spec(spec))
        probed = _unless(must_end, lambda: self._library.probe(target, job.id, options.name))
        if probed is None:
            return None
        manifest = _unless(must_end, lambda: self._store.publish_folder(target, options.name, intend=self._intend))
        return None if manifest is None else Imported(spec, manifest, probed)

    def _intend(self, manifest_digest: str) -> None:
        self._database.write(lambda uow: uow.models.intend(manifest_digest))

    def _publish(
        self,
        job: ClaimedJob,
        name: str,
        made: Imported,
        took_s: float,
    ) -> str:
        spec, manifest = made.spec, made.manifest
        spec_json: dict[str, Any] = json.loads(dump_model_spec(spec))

        def work(uow: UnitOfWork) -> str:
            uow.after_commit(lambda: self._wake.wake([job.id]))
            before = uow.models.published_by(job.id, job.attempt)
            if before is not None:  # by a commit whose answer was lost
                return before.version.ref
            version = uow.models.publish(
                project_id=job.project_id,
                name=name,
                task=spec.task,
                manifest_digest=manifest.digest,
                size_bytes=manifest.size_bytes,
                spec=spec_json,
                job_id=job.id,
                attempt=job.attempt,
                lineage={"source": "import"},
            ).version
            kept = uow.models.record_dtype(replace(made.probed, manifest_digest=manifest.digest))
            if not uow.attempts.complete([_completion(job, version.ref, spec, kept, took_s)]):
                raise StaleAttempt(f"import {job.id} was overtaken; nothing is published")
            return version.ref

        return self._database.write(work)


def _unless(must_end: Callable[[], bool], work: Callable[[], T]) -> T | None:
    """What `work` gives, run beside this thread; None when `must_end` came true first.

    Then it runs on, and its folder is taken away: the device and a remote store cannot be told to stop. Nothing names
    what it still stores.
    """
    done: Future[T] = Future()
    context = copy_context()  # what it logs names the attempt, as the handler's own lines do
    threading.Thread(target=context.run, args=(_run_to, done, work), name="import", daemon=True).start()
    while not wait([done], timeout=_LOOK_S).done:
        if must_end():
            return None
    return done.result()


def _run_to(done: Future[T], work: Callable[[], T]) -> None:
    try:
        done.set_result(work())
    except BaseException as exc:  # noqa: BLE001 - the thread's edge: whoever waits raises it again
        done.set_exception(exc)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a folder above it is closed
        return False


def _completion(job: ClaimedJob, ref: str, spec: ModelSpec, dtype: DtypeRecord, took_s: float) -> Completion:
    result = {
        "object": "import.result",
        "model": ref,
        "task": spec.task,
        "dimensions": spec.dimensions,
        "max_length": spec.max_length,
        "num_parameters": spec.num_parameters,
        "warnings": list(spec.warnings),
        "device": {key: value for key, value in asdict(dtype).items() if key != "manifest_digest"},
    }
    data = json.dumps(result).encode()
    return Completion(
        job_id=job.id,
        attempt=job.attempt,
        summary={"kind": "import", "result": result, "num_tokens": 0},
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        tokens=0,
        timings={"queue_wait_s": round(job.claimed_at - job.created_at, 6), "load_s": round(took_s, 3)},
        data=None,
    )
