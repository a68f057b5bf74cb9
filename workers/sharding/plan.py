"""The plan of one cut, which the supervisor writes and the child reads, and what the child leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ondol.contract.cutting import MAX_SHARD_INPUTS
from ondol.contract.inference_checks import TokenEstimate
from ondol.contract.jobs import InputLimits
from ondol.contract.kinds import JobKind
from ondol.contract.payloads import InputColumns

PLAN_FILE = "plan.json"
PAYLOADS_FILE = "payloads.bin"
"""All payloads end to end."""
INDEX_FILE = "index.jsonl"
"""One `CutShard` a line, in the order of the inputs."""
MAX_SHARD_BYTES = 8 * 1024 * 1024
"""Payload of one shard: texts that the model cuts are few tokens however long they are."""


@dataclass(frozen=True, slots=True)
class BatchFormat:
    """Lines of OpenAI's batch format: the one endpoint they name, and the body of the first line without its input."""

    endpoint: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CutPlan:
    """What is cut, and how. `filename` is the user's, whose suffix says the format; `batch`: it has OpenAI's instead.

    A shard is over `max_tokens` only where one row, or one line of a batch, is.
    """

    path: Path
    filename: str
    work_dir: Path
    kind: JobKind
    estimate: TokenEstimate
    max_tokens: int
    columns: InputColumns | None = None
    batch: BatchFormat | None = None
    max_inputs: int = MAX_SHARD_INPUTS
    max_text_bytes: int = InputLimits().max_text_bytes


@dataclass(frozen=True, slots=True)
class CutShard:
    """One shard: where its payload stands in the payloads' file, and what it holds."""

    offset: int
    size: int
    sha256: str
    first_input: int
    num_inputs: int
    estimated_tokens: int


@dataclass(frozen=True, slots=True)
class CutReport:
    """What was cut: all inputs, those among them that were refused, and the first reason for it."""

    num_inputs: int
    num_refused: int
    estimated_tokens: int
    num_shards: int
    first_refusal: str | None = None


_PLAN: TypeAdapter[CutPlan] = TypeAdapter(CutPlan)
_SHARD: TypeAdapter[CutShard] = TypeAdapter(CutShard)
_REPORT: TypeAdapter[CutReport] = TypeAdapter(CutReport)


def write_plan(plan: CutPlan) -> Path:
    """Write the plan into its folder; the file."""
    path = plan.work_dir / PLAN_FILE
    path.write_bytes(_PLAN.dump_json(plan))
    return path


def read_plan(path: Path) -> CutPlan:
    """The plan that `write_plan` wrote."""
    return _PLAN.validate_json(path.read_bytes())


def read_index(work_dir: Path) -> list[CutShard]:
    """The shards that were cut, in the order of their inputs."""
    with (work_dir / INDEX_FILE).open("rb") as lines:
        return [_SHARD.validate_json(line) for line in lines]


def parse_report(value: object) -> CutReport:
    """The report in the child's answer."""
    return _REPORT.validate_python(value)
