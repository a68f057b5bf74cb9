"""The worker's side of planning a job from a file: bring it here, have a child cut it, bring the payloads to the store.

Everything local is below a folder of this worker's own, and can be made again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from models_store.copying import CHUNK_BYTES, copy_hashed
from models_store.failures import translated
from models_store.file_blobs import FileBlobs
from models_store.input_blobs import InputBlobs
from ondol.contract.errors import ChecksumMismatch, ContractError, InvalidPayload, NotFound, StoreUnavailable
from ondol.contract.inference_checks import read_spec, token_estimate
from ondol.contract.jobs import INFERENCE_OPTIONS, validated
from ondol.contract.payloads import InputColumns
from ondol.sql.database import Database
from ondol.sql.files import FileRecord
from ondol.sql.records import ClaimedJob, InputBlob, NewShard
from workers.limited_child import LimitedChild
from workers.sharding.plan import (
    PAYLOADS_FILE,
    BatchFormat,
    CutPlan,
    CutReport,
    CutShard,
    parse_report,
    read_index,
    write_plan,
)

PLANNING_LIMIT_S = 3_600.0
PLANNING_MEMORY_MB = 8_192
_OPENAI_BATCH = "openai_batch"

_CUT = LimitedChild(
    "workers.sharding",
    what="reading the input file",
    code="planning_child_died",
    advice="if it lacked memory, split the file",
    is_tried_again=True,
)


@dataclass(frozen=True, slots=True)
class PlannedShards:
    """A job's shards, whose payloads are in the store at `path`, ready to be recorded."""

    path: str
    shards: tuple[NewShard, ...]
    num_inputs: int
    num_refused: int
    estimated_tokens: int


class ShardPlanner:
    """Plans jobs on any thread that lives on; `staging` is emptied when it is made."""

    def __init__(
        self, *, database: Database, files: FileBlobs, inputs: InputBlobs, staging: Path, max_tokens: int
    ) -> None:
        self._database = database
        self._files = files
        self._inputs = inputs
        self._staging = staging
        self._max_tokens = max_tokens
        shutil.rmtree(staging, ignore_errors=True)  # what a plan left that ended with its worker

    def plan(self, job: ClaimedJob, *, must_end: Callable[[], bool]) -> PlannedShards | None:
        """The shards of the job, with their payloads stored; blocks. None: `must_end` came true first.

        InvalidPayload (`invalid_file`): the file cannot be cut; the message names row and column. ContractError
        (`input_changed`): it is no longer what was uploaded. Errors of the store and of the child pass through.
        """
        try:
            with translated(f"making the folder of {job.id}"):
                self._staging.mkdir(parents=True, exist_ok=True)
                folder = Path(tempfile.mkdtemp(prefix=f"{job.id}-", dir=self._staging))
            try:
                return self._plan_in(folder, job, must_end)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        except _Ended:
            return None

    def drop(self, planned: PlannedShards) -> None:
        """Remove the payloads of a plan that was not recorded and never will be."""
        self._inputs.delete_one(planned.path)

    def _plan_in(self, folder: Path, job: ClaimedJob, must_end: Callable[[], bool]) -> PlannedShards:
        if job.attempt > 1:  # what attempts before this one left can no longer be recorded
            self._inputs.delete_older(job.id, job.attempt)
        path = folder / "file"
        record = self._fetch(job, path, must_end)
        plan = self._cut_plan(job, path, record.filename, folder)
        report = _run_child(plan, must_end)
        index = read_index(folder)
        with (folder / PAYLOADS_FILE).open("rb") as payloads:
            stored_at = self._inputs.write(job.id, job.attempt, _chunks(payloads, must_end))
        return PlannedShards(
            path=stored_at,
            shards=tuple(_new_shard(number, cut, stored_at) for number, cut in enumerate(index)),
            num_inputs=report.num_inputs,
            num_refused=report.num_refused,
            estimated_tokens=report.estimated_tokens,
        )

    def _fetch(self, job: ClaimedJob, path: Path, must_end: Callable[[], bool]) -> FileRecord:
        """The uploaded file at `path`, verified."""
        file_id = job.input_file_id
        assert file_id is not None
        try:
            record = self._database.read(lambda uow: uow.files.get(file_id, job.project_id, may_be_expired=True))
            with self._files.open(file_id) as source, path.open("wb") as target:
                actual = copy_hashed(_Endable(source, must_end), target)
                if actual != record.sha256:
                    raise ChecksumMismatch(ref=file_id, file=record.filename, expected=record.sha256, actual=actual)
        except (NotFound, ChecksumMismatch) as exc:
            raise ContractError(
                f"the file {file_id} is gone or has changed since the job was accepted",
                param="input_file",
                code="input_changed",
            ) from exc
        return record

    def _cut_plan(self, job: ClaimedJob, path: Path, filename: str, folder: Path) -> CutPlan:
        version_id = job.version_id
        assert version_id is not None
        version = self._database.read(lambda uow: uow.models.by_id(version_id))
        options = validated(INFERENCE_OPTIONS[job.kind], job.options, prefix="options")
        columns, batch = _format(json.loads(job.payload))
        return CutPlan(
            path=path,
            filename=filename,
            work_dir=folder,
            kind=job.kind,
            estimate=token_estimate(options, read_spec(version.spec, ref=version.ref)),
            max_tokens=self._max_tokens,
            columns=columns,
            batch=batch,
        )


class _Ended(Exception):
    """The plan is no longer wanted."""


@dataclass(frozen=True, slots=True)
class _Endable:
    """A source whose copying ends when it must."""

    source: IO[bytes]
    must_end: Callable[[], bool]

    def read(self, num_bytes: int, /) -> bytes:
        """At most `num_bytes` bytes; _Ended when the plan is no longer wanted."""
        if self.must_end():
            raise _Ended
        return self.source.read(num_bytes)


def _chunks(payloads: IO[bytes], must_end: Callable[[], bool]) -> Iterator[bytes]:
    source = _Endable(payloads, must_end)
    while chunk := source.read(CHUNK_BYTES):
        yield chunk


def _format(payload: dict[str, Any]) -> tuple[InputColumns | None, BatchFormat | None]:
    """Which columns the job names, or that its file has OpenAI's format."""
    if payload.get("format") == _OPENAI_BATCH:
        return None, BatchFormat(payload["endpoint"], payload["body"])
    columns = payload.get("columns")
    return (None if columns is None else InputColumns.model_validate(columns)), None


def _run_child(plan: CutPlan, must_end: Callable[[], bool]) -> CutReport:
    with translated("writing a plan"):
        arguments = ["--plan", str(write_plan(plan))]
    answer = _CUT.run(arguments, timeout_s=PLANNING_LIMIT_S, memory_mb=PLANNING_MEMORY_MB, must_end=must_end)
    if answer is None:
        raise _Ended
    if answer["ok"]:
        return parse_report(answer["report"])
    error = answer["error"]
    if error["code"] == InvalidPayload.code:
        raise InvalidPayload(error["message"], param=error["param"], code="invalid_file")
    raise StoreUnavailable(error["message"], code=error["code"])  # the disk is full or broken


def _new_shard(number: int, cut: CutShard, path: str) -> NewShard:
    return NewShard(
        number=number,
        first_input=cut.first_input,
        num_inputs=cut.num_inputs,
        estimated_tokens=cut.estimated_tokens,
        blob=InputBlob(path, cut.offset, cut.size, cut.sha256),
    )
