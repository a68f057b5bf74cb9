"""What the repositories take and give: frozen dataclasses, no rows and no connections."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState, Priority

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class InputBlob:
    """Where a shard's payload stands in the store: `size` bytes from `offset` of the file at `path`."""

    path: str
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class NewShard:
    """A slice of a job's inputs about to be recorded; `payload` and `blob` exclude each other.

    The payload is a UTF-8 JSON list of inputs, or `{"inputs": […], "ids": […]}` where the caller named an id column.
    """

    number: int
    first_input: int
    num_inputs: int
    estimated_tokens: int
    payload: bytes = b""
    blob: InputBlob | None = None


@dataclass(frozen=True, slots=True)
class NewJob:
    """A validated job about to be recorded. `payload` is the input as UTF-8 JSON.

    With `shards` it is recorded together with them and is itself never run. With `input_file_id` and without `shards`
    its first attempt plans them; `payload` then is `{"columns": {"text", "text_pair", "id"}}` (null: the default).
    """

    id: str
    project_id: str
    kind: JobKind
    priority: Priority
    payload: bytes
    options: JsonObject
    num_inputs: int
    estimated_tokens: int
    version_id: str | None = None
    model_ref: str | None = None
    metadata: JsonObject = field(default_factory=dict)
    run_after: float | None = None
    deadline_s: float | None = None
    task_id: str | None = None
    """The id of the Celery task by which a producer submitted the job."""
    ignores_result: bool = False
    """Whether that producer wants no answer."""
    webhook: str | None = None
    """The URL that is told of the job's end."""
    state: JobState = JobState.QUEUED
    """Where the job begins: a fine-tune's files are validated first."""
    shards: tuple[NewShard, ...] = ()
    input_file_id: str | None = None
    batch: JsonObject | None = None
    """What OpenAI's batch object says of the job beside its state: endpoint, completion_window, output files."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as the outside sees it, with its latest attempt."""

    id: str
    project_id: str
    kind: JobKind
    state: JobState
    priority: Priority
    model_ref: str | None
    metadata: JsonObject
    num_inputs: int
    num_done: int
    created_at: float
    run_after: float
    deadline_at: float | None
    started_at: float | None
    finished_at: float | None
    attempt: int
    worker: str | None
    tokens: int | None
    timings: JsonObject | None
    error: JsonObject | None
    event_seq: int
    resolved: JsonObject | None = None
    pause_requested_at: float | None = None
    device_released_at: float | None = None
    task_id: str | None = None
    webhook: str | None = None
    message_id: str | None = None
    """The message by which the latest attempt was rung: the id of its task in Flower."""
    options: JsonObject = field(default_factory=dict)
    is_sharded: bool = False
    input_file_id: str | None = None
    batch: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One shard of a job as a reader of the result sees it; `result` is there when it succeeded."""

    id: str
    number: int
    first_input: int
    num_inputs: int
    state: JobState
    error: JsonObject | None
    result: ResultRecord | None
    input_blob: InputBlob | None = None
    """Where its payload is, if it was cut from a file; inputs without a result bear the caller's ids only there."""


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that this session runs now, as attempt `attempt`."""

    id: str
    attempt: int
    project_id: str
    kind: JobKind
    priority: Priority
    version_id: str | None
    model_ref: str | None
    options: JsonObject
    payload: bytes
    num_inputs: int
    is_alone: bool
    num_losses: int
    created_at: float
    claimed_at: float
    deadline_at: float | None
    input_file_id: str | None = None
    """The file whose rows are the inputs: this attempt plans the shards and runs nothing on the device."""
    input_blob: InputBlob | None = None
    """Where the payload is when it is not in `payload`."""


@dataclass(frozen=True, slots=True)
class ClaimedTraining:
    """A fine-tune that this session checks (`is_check`) or trains now, as attempt `attempt`."""

    id: str
    attempt: int
    project_id: str
    is_check: bool
    version_id: str
    model_ref: str
    options: JsonObject
    resolved: JsonObject | None
    trained_s: float
    """Seconds that earlier attempts have run."""
    created_at: float
    claimed_at: float


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """A committed checkpoint of a fine-tune; its files are in the store under job, step and attempt."""

    job_id: str
    step: int
    attempt: int
    manifest_digest: str
    size_bytes: int
    metrics: JsonObject
    is_best: bool
    created_at: float


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished attempt with its result. `data` and `blob_path` exclude each other."""

    job_id: str
    attempt: int
    summary: JsonObject
    sha256: str
    size_bytes: int
    tokens: int
    timings: JsonObject
    data: bytes | None = None
    blob_path: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that ended without a result. `retry_after_s` set: queue the job again after so long."""

    job_id: str
    attempt: int
    error: JsonObject
    retry_after_s: float | None = None
    num_losses: int = 0
    timings: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class FreedBlobs:
    """Files of the store that a deleted job named: results (`ResultBlobs`) and inputs (`InputBlobs`)."""

    results: tuple[str, ...]
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One event of a job."""

    job_id: str
    seq: int
    created_at: float
    type: str
    data: JsonObject


@dataclass(frozen=True, slots=True)
class ResultRecord:
    """A stored result: `summary` describes `data` (or the blob) as `docs/architecture.md` says."""

    job_id: str
    attempt: int
    summary: JsonObject
    sha256: str
    size_bytes: int
    data: bytes | None
    blob_path: str | None


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A worker session whose lease runs."""

    id: str
    worker: str
    device: str
    device_kind: str
    is_ready: bool
    warm: tuple[str, ...]
    expires_at: float
    role: str = "infer"
    memory_bytes: int | None = None
    """What its warm models may take; None where it is not known."""
    clock_ahead_s: float | None = None
    """Its process's clock minus the database's, in seconds, at its last renewal; None where it is not known."""


@dataclass(frozen=True, slots=True)
class RungMessage:
    """A message to publish after the commit: which jobs, to which worker's queue of which class."""

    id: str
    worker: str
    priority: Priority
    kind: JobKind
    jobs: tuple[tuple[str, int], ...]
    """(job id, attempt at ring time) of each job."""


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A published model version."""

    id: str
    model_id: str
    project_id: str
    name: str
    number: int
    task: str
    manifest_digest: str
    size_bytes: int
    spec: JsonObject
    aliases: tuple[str, ...]
    job_id: str | None
    lineage: JsonObject
    created_at: float

    @property
    def ref(self) -> str:
        """The frozen reference, `name:3`."""
        return f"{self.name}:{self.number}"


@dataclass(frozen=True, slots=True)
class DtypeRecord:
    """What `dtype: auto` means for a version's files on a kind of device."""

    manifest_digest: str
    device_kind: str
    engine: str
    dtype: str
    fidelity: JsonObject
    is_packed: bool


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key without its secret."""

    id: str
    project_id: str
    project: str
    name: str
    is_admin: bool
    created_at: float
    revoked_at: float | None


@dataclass(frozen=True, slots=True)
class ProjectRecord:
    """A project: its weight beside others, and how much of it may wait (None: as the settings say)."""

    id: str
    name: str
    weight: float
    max_queued_jobs: int | None
    max_queued_tokens: int | None
