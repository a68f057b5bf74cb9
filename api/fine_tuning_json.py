"""A fine-tune as OpenAI's clients see it: the job, its checkpoints, and the ids that their pages are cut by."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from api.fine_tuning_request import SUPERVISED, default_learning_rate
from ondol.contract.errors import InvalidPayload
from ondol.contract.states import TERMINAL, JobState
from ondol.sql.records import CheckpointRecord, JobRecord

_EVENT_ID = re.compile(r"ftevent_(?P<job>[0-9a-z]{26})_(?P<number>[1-9][0-9]{0,8})")
_CHECKPOINT_ID = re.compile(r"ftckpt_(?P<job>[0-9a-z]{26})_(?P<number>0|[1-9][0-9]{0,8})")
_THEIR_PARAMS = {
    "options.train_file": "training_file",
    "options.validation_file": "validation_file",
    "options.hyperparameters.num_train_epochs": "hyperparameters.n_epochs",
    "options.hyperparameters.per_device_train_batch_size": "hyperparameters.batch_size",
    "options.hyperparameters.learning_rate": "hyperparameters.learning_rate_multiplier",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of a fine-tune beside its row."""

    model: str | None = None
    """The published version, name:3."""
    ends_at: float | None = None
    """When the running training is expected to be done."""


def fine_tuning_job_json(job: JobRecord, outcome: Outcome) -> dict[str, Any]:
    """The `fine_tuning.job` object; status `paused` is ours."""
    options = job.options
    hyperparameters = _hyperparameters(options)
    return {
        "object": "fine_tuning.job",
        "id": job.id,
        "created_at": int(job.created_at),
        "error": _error(job) if job.state is JobState.FAILED else None,
        "fine_tuned_model": outcome.model,
        "finished_at": int(job.finished_at) if job.state in TERMINAL and job.finished_at is not None else None,
        "hyperparameters": hyperparameters,
        "method": {"type": SUPERVISED, SUPERVISED: {"hyperparameters": hyperparameters}},
        "model": job.model_ref,
        "organization_id": job.project_id,
        "result_files": [],
        "seed": options["seed"],
        "status": job.state.value,
        "trained_tokens": None,
        "training_file": options["train_file"],
        "validation_file": options.get("validation_file"),
        "estimated_finish": None if outcome.ends_at is None else int(outcome.ends_at),
        "integrations": [],
        "metadata": job.metadata,
    }


def checkpoint_json(checkpoint: CheckpointRecord, train_loss: float | None) -> dict[str, Any]:
    """The `fine_tuning.job.checkpoint` object; all validation rows are evaluated, so both losses of theirs are one."""
    metrics: dict[str, Any] = {"step": checkpoint.step, **checkpoint.metrics}
    loss = metrics.pop("loss", None)
    losses = {"train_loss": train_loss, "valid_loss": loss, "full_valid_loss": loss}
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": f"ftckpt_{_tail(checkpoint.job_id)}_{checkpoint.step}",
        "created_at": int(checkpoint.created_at),
        "fine_tuned_model_checkpoint": f"{checkpoint.job_id}:ckpt-step-{checkpoint.step}",
        "step_number": checkpoint.step,
        "metrics": metrics | {name: value for name, value in losses.items() if value is not None},
        "fine_tuning_job_id": checkpoint.job_id,
    }


def event_id(job_id: str, seq: int) -> str:
    """The id of a job's event of this number."""
    return f"ftevent_{_tail(job_id)}_{seq}"


def event_before(job_id: str, after: str | None) -> int | None:
    """The number of the event whose id is `after`, behind which a page begins; InvalidPayload if it is another's."""
    return _number(_EVENT_ID, job_id, after, what="event")


def checkpoint_before(job_id: str, after: str | None) -> int | None:
    """The step of the checkpoint whose id is `after`; InvalidPayload if it is another job's."""
    return _number(_CHECKPOINT_ID, job_id, after, what="checkpoint")


def _number(form: re.Pattern[str], job_id: str, after: str | None, *, what: str) -> int | None:
    if after is None:
        return None
    found = form.fullmatch(after)
    if found is None or found["job"] != _tail(job_id):
        raise InvalidPayload(f"after is the id of a {what} of this job, not {after[:80]!r}", param="after")
    return int(found["number"])


def _tail(job_id: str) -> str:
    return job_id.removeprefix("job_")


def _hyperparameters(options: dict[str, Any]) -> dict[str, Any]:
    """What is trained with, in OpenAI's words: what was `auto` stands as the number that it means."""
    ours = options["hyperparameters"]
    epochs, rate = ours["num_train_epochs"], ours["learning_rate"]
    multiplier = 1.0 if rate is None else rate / default_learning_rate(options)
    return {
        "n_epochs": int(epochs) if epochs == int(epochs) else epochs,
        "batch_size": ours["per_device_train_batch_size"],
        "learning_rate_multiplier": float(f"{multiplier:.9g}"),
    }


def _error(job: JobRecord) -> dict[str, Any]:
    error = job.error or {}
    param = error.get("param")
    return {
        "code": str(error.get("code") or "internal_error"),
        "message": str(error.get("message") or "the job failed"),
        "param": _THEIR_PARAMS.get(str(param), param),
    }
