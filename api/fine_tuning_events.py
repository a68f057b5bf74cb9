"""A fine-tune's events as OpenAI's clients see them: one readable line each, newest first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from api.fine_tuning_json import event_id
from ondol.contract.states import JobState, Reason
from ondol.sql.records import EventRecord, JobRecord

SHOWN_TYPES = ("state", "message", "metrics")
"""Types of our events that are shown; the trainer's log lines are at `/v1/jobs/{id}/events`."""

_LEVELS = ("info", "warn", "error")
_WARNED_OF = frozenset({Reason.PROCESS_DIED, Reason.LAPSED, Reason.RETRYABLE_ERROR})


@dataclass(frozen=True, slots=True)
class Told:
    """What the lines of a job's events need to know beside the events."""

    job: JobRecord
    model: str | None


def fine_tuning_event_json(event: EventRecord, told: Told) -> dict[str, Any]:
    """The `fine_tuning.job.event` object."""
    is_metrics = event.type == "metrics"
    level, message = _line(event, told)
    return {
        "object": "fine_tuning.job.event",
        "id": event_id(event.job_id, event.seq),
        "created_at": int(event.created_at),
        "level": level,
        "message": message,
        "type": "metrics" if is_metrics else "message",
        "data": _metrics(event.data, told) if is_metrics else event.data,
    }


def _line(event: EventRecord, told: Told) -> tuple[str, str]:
    """Level and message."""
    data = event.data
    if event.type == "metrics":
        return "info", _metrics_line(_metrics(data, told))
    if event.type == "message":
        level = data.get("level")
        return (str(level) if level in _LEVELS else "info"), str(data.get("message", ""))
    if data["to"] == JobState.FAILED:
        return "error", f"failed: {(told.job.error or {}).get('message') or data['reason']}"
    return "warn" if data["reason"] in _WARNED_OF else "info", _state_line(data, told)


def _state_line(data: dict[str, Any], told: Told) -> str:
    make = _STATE_LINES.get(data["reason"])
    if make is not None:
        return make(data, told)
    return f"{data['from']} to {data['to']}: {data['reason']}"


def _accepted(data: dict[str, Any], told: Told) -> str:  # noqa: ARG001  # one shape for all lines
    return f"accepted: to train {told.job.model_ref}; the files are read next"


def _claimed(data: dict[str, Any], told: Told) -> str:  # noqa: ARG001  # one shape for all lines
    what = "reading the files" if data["to"] == JobState.VALIDATING_FILES else "running"
    return f"{what} on {data['worker']} (attempt {data['attempt']})"


def _completed(data: dict[str, Any], told: Told) -> str:  # noqa: ARG001  # one shape for all lines
    return f"published {told.model}" if told.model else "done; nothing was to be published"


def _says(text: str) -> Callable[[dict[str, Any], Told], str]:
    return lambda _data, _told: text


_STATE_LINES: dict[str, Callable[[dict[str, Any], Told], str]] = {
    Reason.ACCEPTED: _accepted,
    Reason.CLAIMED: _claimed,
    Reason.COMPLETED: _completed,
    Reason.VALIDATED: _says("queued: the files are valid, the training waits for a free trainer"),
    Reason.CANCEL_REQUESTED: _says("cancelled on request"),
    Reason.PAUSE_REQUESTED: _says("paused on request, on a checkpoint"),
    Reason.RESUME_REQUESTED: _says("queued again on request, to go on from the last checkpoint"),
    Reason.RETRY_REQUESTED: _says("queued again on request"),
    Reason.HANDED_BACK: _says("queued again: its trainer stops, another goes on from the last checkpoint"),
    Reason.LAPSED: _says("queued again: its trainer was lost; another goes on from the last checkpoint"),
    Reason.PROCESS_DIED: _says("queued again: the training process died; it goes on from the last checkpoint"),
    Reason.RETRYABLE_ERROR: _says("queued again after an error that may pass"),
}


def _metrics(data: dict[str, Any], told: Told) -> dict[str, Any]:
    """Measured numbers under OpenAI's names where it has one, else under ours."""
    shown = {name: value for name, value in data.items() if name not in ("phase", "loss", "metrics")}
    shown["total_steps"] = told.job.num_inputs
    measured = dict(data.get("metrics") or {})
    valid_loss = measured.pop("loss", None)
    losses = {"train_loss": data.get("loss"), "valid_loss": valid_loss, "full_valid_loss": valid_loss}
    return shown | {name: value for name, value in losses.items() if value is not None} | measured


def _metrics_line(shown: dict[str, Any]) -> str:
    where = f"step {shown['step']} of {shown['total_steps']}"
    if "train_loss" in shown:
        return f"{where}: loss {shown['train_loss']:.4g}"
    apart = ("step", "epoch", "total_steps", "full_valid_loss")
    parts = [f"{name} {value:.4g}" for name, value in shown.items() if name not in apart and _is_number(value)]
    return f"{where}, evaluated: {', '.join(parts) or 'no metrics'}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
