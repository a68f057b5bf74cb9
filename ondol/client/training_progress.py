"""Where a fine-tune stands, as its events tell it, and which of them are worth a line of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ondol.client.records import JobEvent, JobFields
from ondol.contract.fine_tune import LOWER_IS_BETTER

_PHASES = {"validating_files": "checking files", "running": "training"}
_CHANGES = {
    ("validating_files", "accepted"): "accepted; the files are checked first",
    ("validating_files", "claimed"): "the files are being checked",
    ("queued", "validated"): "queued for training",
    ("queued", "resume_requested"): "resumed; queued for training",
    ("queued", "handed_back"): "the trainer stops and has handed the job back; queued again",
    ("queued", "retry_requested"): "queued again",
}


@dataclass(frozen=True, slots=True)
class Best:
    """The best evaluation so far by the metric that chooses the published weights."""

    step: int
    value: float


class TrainingProgress:
    """Takes the events of one fine-tune in order; the attributes are what they say together.

    `step` of `max_steps` (None: not known yet), `epoch`, `loss` and `eta_s` (seconds that training will still take, as
    of the event that said it) are those of the latest of `num_reports` reports; None: there was none yet.
    """

    def __init__(self, job: JobFields) -> None:
        self.status = job.status
        self.step = 0
        self.max_steps: int | None = None
        self.epoch: float | None = None
        self.loss: float | None = None
        self.eta_s: float | None = None
        self.num_reports = 0
        self.metric: str | None = None
        self._job_id = job.id
        self._scores: dict[int, float] = {}
        self._has_started = self._is_training = False
        self.see(job)

    @property
    def phase(self) -> str:
        """What is being done, in a word or two."""
        if self.status == "running" and not self._is_training:
            return "starting"
        if self.status == "running" and self.max_steps and self.step >= self.max_steps:
            return "publishing"
        return _PHASES.get(self.status, self.status)

    @property
    def best(self) -> Best | None:
        """The earliest of the best evaluations."""
        if not self._scores:
            return None
        sign = 1 if self.metric in LOWER_IS_BETTER else -1
        step = min(self._scores, key=lambda at: (sign * self._scores[at], at))
        return Best(step, self._scores[step])

    def see(self, job: JobFields) -> None:
        """Take what the job says and its events may not: what was resolved. Events are newer in all else."""
        if job.resolved:
            self._learn(job.resolved.get("report") or {})

    def take(self, event: JobEvent, *, columns: int | None = None) -> str | None:
        """The line that the event is worth, if any: all but reports of steps and the trainer's own log.

        Of an evaluation it names as many metrics as `columns` have room for, the one that matters first.
        """
        if event.type == "state":
            return self._moved(event.data)
        if event.type == "metrics":
            return self._measured(event.data, columns)
        if event.type == "message":
            return self._told(event.data)
        return None

    def describe(self) -> str:
        """Steps, epoch, loss, best metric and remaining time in one line."""
        parts = [self.phase]
        if self.max_steps:
            parts.append(f"step {self.step}/{self.max_steps}")
        parts += self.numbers()
        if self.eta_s is not None:
            parts.append(f"{duration(self.eta_s)} left")
        return ", ".join(parts)

    def numbers(self, *, digits: int = 4) -> list[str]:
        """Epoch, loss and best metric, as far as they are known; so many decimals, the epoch two less."""
        best = self.best
        given = [
            None if self.epoch is None else f"epoch {self.epoch:.{digits - 2}f}",
            None if self.loss is None else f"loss {self.loss:.{digits}f}",
            None if best is None else f"best {self.metric} {best.value:.{digits}f}",
        ]
        return [text for text in given if text is not None]

    def _moved(self, data: Mapping[str, Any]) -> str:
        self.status = after = str(data.get("to"))
        reason = str(data.get("reason"))
        if after != "running":
            self.eta_s = None
            self._is_training = False
        if (after, reason) in _CHANGES:
            return _CHANGES[after, reason]
        if after == "running":
            again = f" again, attempt {data.get('attempt')}," if self._has_started else ""
            self._has_started = True
            return f"starting{again} on {data.get('worker')}"
        if after == "paused":
            return f"paused; `ondol jobs resume {self._job_id}` goes on from its checkpoint"
        if after == "queued":
            return f"queued again ({reason})"
        return f"the job has {after}" if after in ("succeeded", "failed") else f"the job is {after} ({reason})"

    def _measured(self, data: Mapping[str, Any], columns: int | None) -> str | None:
        self.step = int(data["step"])
        self._is_training = True
        self.epoch = data.get("epoch", self.epoch)
        if data.get("phase") != "evaluation":
            self.num_reports += 1
            self.loss = data.get("loss")
            self.eta_s = data.get("eta_s")
            return None
        metrics: Mapping[str, float | None] = data.get("metrics") or {}
        value = metrics.get(self.metric) if self.metric else None
        if value is not None:
            self._scores[self.step] = value
        end = " - best so far" if self.best is not None and self.best.step == self.step else ""
        said = [metric_text(name, value) for name, value in sorted(metrics.items(), key=self._own_metric_first)]
        line = f"step {self.step}: {', '.join(said)}{end}"
        while columns is not None and len(line) > columns and len(said) > 1:
            said.pop()
            line = f"step {self.step}: {', '.join(said)}{end}"
        return line

    def _told(self, data: Mapping[str, Any]) -> str:
        self._learn(data.get("report") or {})
        if "max_steps" in data:
            self._begun(data)
        message = str(data.get("message") or "")
        checkpoint = data.get("checkpoint")
        if checkpoint:
            return f"checkpoint of step {checkpoint['step']}, {_megabytes(checkpoint['size_bytes'])}"
        return f"warning: {message}" if data.get("level") == "warn" else message

    def _begun(self, data: Mapping[str, Any]) -> None:
        """Training (again) stands at its first step or at a checkpoint; what came behind that counts no more."""
        self.max_steps = int(data["max_steps"])
        self._is_training = True
        self.step = int(data.get("resumed_from") or 0)
        self.epoch = self.loss = self.eta_s = None
        self._scores = {step: value for step, value in self._scores.items() if step <= self.step}

    def _learn(self, report: Mapping[str, Any]) -> None:
        self.metric = report.get("metric", self.metric)
        self.max_steps = report.get("max_steps", self.max_steps)

    def _own_metric_first(self, item: tuple[str, object]) -> tuple[int, str]:
        return ([self.metric, "loss"].index(item[0]) if item[0] in (self.metric, "loss") else 2, item[0])


def duration(total_s: float) -> str:
    """Seconds for people: `45 s`, `3 min 05 s`, `2 h 10 min`."""
    minutes, left_s = divmod(max(0, round(total_s)), 60)
    if minutes == 0:
        return f"{left_s} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02} min" if hours else f"{minutes} min {left_s:02} s"


def metric_text(name: str, value: float | None) -> str:
    """A metric for people."""
    return f"{name} {value:.4f}" if value is not None else f"{name} is no number"


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
