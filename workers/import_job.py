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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import structlog

from models_store.manifest import Manifest
from models_store.store import ModelStore
from ondol.broker.wake import WakeBus
from ondol.contract.errors import StaleAttempt
from ondol.contract.model_spec import SPEC_FILE, ModelSpec, dump_model_spec
from ondol.contract.payloads import ImportInput, ImportOptions
from ondol.sql.database import Database
from ondol.sql.records import ClaimedJob, Completion, DtypeRecord
from ondol.sql.unit_of_work import UnitOfWork
from workers.importing.run import run_import
from workers.model_library import ModelLibrary

log = structlog.get_logger(__name__)

IMPORT_LIMIT_S = 900.0
_LOOK_S = 0.5


class ImportRunner:
    """Runs one import at a time a handler thread; everything half-done is below `staging`, this worker's own folder."""

    def __init__(
        self, *, database: Database, store: ModelStore, library: ModelLibrary, wake: WakeBus, staging: Path
    ) -> None:
        self._database = database
        self._store = store
        self._library = library
        self._wake = wake
        self._staging = staging
        shutil.rmtree(staging, ignore_errors=True)  # what an import left that ended with its worker

    def run(self, job: ClaimedJob, *, must_end: Callable[[], bool]) -> bool:
        """Import and record. False: `must_end` came true first, and the job goes back to the queue.

        Raises OndolError (ModelRefused and the like) when nothing was published. An import that was given up runs on
        until its child ends with this process; what it would still publish is refused as stale.
        """
        done: Future[None] = Future()
        context = copy_context()  # what it logs names the attempt, as the handler's own lines do
        args = (self._run_to, job, done)
        threading.Thread(target=context.run, args=args, name=f"import-{job.id}", daemon=True).start()
        while not wait([done], timeout=_LOOK_S).done:
            if must_end():
                log.warning("import.given_up", job_id=job.id)
                return False
        done.result()
        return True

    def _run_to(self, job: ClaimedJob, done: Future[None]) -> None:
        try:
            self._run(job)
        except BaseException as exc:  # noqa: BLE001 - the thread's edge: the handler that waits raises it again
            done.set_exception(exc)
        else:
            done.set_result(None)

    def _run(self, job: ClaimedJob) -> None:
        source = Path(ImportInput.model_validate_json(job.payload).path)
        options = ImportOptions.model_validate(job.options)
        started_at = time.monotonic()
        self._staging.mkdir(parents=True, exist_ok=True)
        target = Path(tempfile.mkdtemp(prefix=f"{job.id}-", dir=self._staging)) / "model"
        try:
            spec = run_import(source, target, convert_bin=options.convert_bin, timeout_s=IMPORT_LIMIT_S)
            if not (target / SPEC_FILE).exists():
                (target / SPEC_FILE).write_bytes(dump_model_spec(spec))
            probed = self._library.probe(target, job.id, options.name)
            manifest = self._store.publish_folder(target, options.name)
        finally:
            shutil.rmtree(target.parent, ignore_errors=True)
        ref = self._publish(job, options.name, spec, manifest, probed, time.monotonic() - started_at)
        log.info("import.published", job_id=job.id, ref=ref, dtype=probed.dtype, is_packed=probed.is_packed)

    def _publish(
        self,
        job: ClaimedJob,
        name: str,
        spec: ModelSpec,
        manifest: Manifest,
        probed: DtypeRecord,
        took_s: float,
    ) -> str:
        spec_json: dict[str, Any] = json.loads(dump_model_spec(spec))

        def work(uow: UnitOfWork) -> str:
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
            kept = uow.models.record_dtype(replace(probed, manifest_digest=manifest.digest))
            if not uow.attempts.complete([_completion(job, version.ref, spec, kept, took_s)]):
                raise StaleAttempt(f"import {job.id} was overtaken; nothing is published")
            uow.after_commit(lambda: self._wake.wake([job.id]))
            return version.ref

        return self._database.write(work)


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
