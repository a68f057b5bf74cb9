"""The plan of one training run: the file `plan.json` by which the trainer node tells its children what to do.

The check of the data reads it without `report`; the training child reads it with the report of that check, in which
everything that the options leave open is resolved. Imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ondol.contract.errors import ModelStoreError
from ondol.contract.fine_tune import FineTuneOptions

PLAN_FILE = "plan.json"


@dataclass(frozen=True, slots=True)
class BaseVersion:
    """The version that is trained further: its reference with a number, and the folder of its verified files."""

    ref: str
    path: Path


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of rows on this machine; `filename` is the user's name for it, whose suffix says the format."""

    path: Path
    filename: str


@dataclass(frozen=True, slots=True)
class DataFiles:
    """What is trained on; without `validation`, rows of `train` are held out."""

    train: DataFile
    validation: DataFile | None = None


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Rows by label (several of one row where the training is multi-label); tokens by tag; empty for regression."""

    train: dict[str, int] = field(default_factory=dict)
    validation: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """Tokens a row over training and validation rows, special tokens counted; rows longer than `max_length`."""

    p50: int
    p95: int
    max: int
    num_cut: int


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What the check found and resolved; frozen in the job, so every attempt trains the same."""

    task: str
    problem_type: str | None
    """One of `FineTuneOptions.problem_type`; None for token-classification."""
    labels: list[str]
    """Names by label id; for regression the one name of the label column."""
    columns: dict[str, str]
    """The column of the training file that plays each part."""
    num_train: int
    num_validation: int
    class_counts: ClassCounts
    lengths: TokenLengths
    max_length: int
    metric: str
    learning_rate: float
    steps_per_epoch: int
    """Optimizer steps."""
    max_steps: int
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """Everything that a check or a training run needs to know."""

    job_id: str
    attempt: int
    base: BaseVersion
    files: DataFiles
    options: FineTuneOptions
    work_dir: Path
    report: TrainReport | None = None
    """None before the check."""
    resume_from: Path | None = None
    """Folder of a verified checkpoint."""
    best_from: Path | None = None
    """Folder of the best checkpoint so far."""
    device: str = "cpu:0"
    threads: int = 1
    cores: list[int] | None = None
    """Cores to be pinned to; None: wherever the parent may run."""
    gate: Path | None = None
    """The gate file of a device that also serves."""
    output_ref_name: str = ""
    lineage: dict[str, Any] = field(default_factory=dict)


_PLAN: TypeAdapter[TrainPlan] = TypeAdapter(TrainPlan)
_REPORT: TypeAdapter[TrainReport] = TypeAdapter(TrainReport)


def dump_plan(plan: TrainPlan) -> bytes:
    """`plan` as the bytes of `plan.json`."""
    return _PLAN.dump_json(plan, indent=1)


def parse_plan(data: bytes) -> TrainPlan:
    """The plan in `data`; ModelStoreError when it is not one."""
    try:
        return _PLAN.validate_json(data)
    except ValidationError as exc:
        raise ModelStoreError(f"{PLAN_FILE} is not readable: {_first_error(exc)}") from exc


def report_as_dict(report: TrainReport) -> dict[str, Any]:
    """`report` as JSON values, the way it is stored in the job (`resolved`)."""
    content: dict[str, Any] = _REPORT.dump_python(report, mode="json")
    return content


def parse_report(content: Any) -> TrainReport:
    """The report that `report_as_dict` gave; ModelStoreError when it is not one."""
    try:
        return _REPORT.validate_python(content)
    except ValidationError as exc:
        raise ModelStoreError(f"the report of the data check is not readable: {_first_error(exc)}") from exc


def _first_error(exc: ValidationError) -> str:
    error = exc.errors()[0]
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
