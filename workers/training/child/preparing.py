"""What a run needs before its first step: rows, loss, evaluator, and the conditions under which numbers repeat."""

from __future__ import annotations

import statistics
import time
from collections import deque
from dataclasses import dataclass
from itertools import islice

import torch

from ondol.contract.errors import InvalidPayload
from ondol.contract.model_spec import SPEC_FILE, ModelSpec, parse_model_spec
from workers.device.device_kinds import device_kind, native_dtypes
from workers.training.child.checkpoints import Conditions
from workers.training.child.encoding import Encoder
from workers.training.child.evaluating import Evaluator
from workers.training.child.losses import TaskLoss, class_weights
from workers.training.child.pace import Pace
from workers.training.child.pulse import Pulse
from workers.training.child.rows import Collator, EncodedRows, Row
from workers.training.child.stopping import StopRequest
from workers.training.data.dataset import load_dataset
from workers.training.data.examples import Dataset, TextExample
from workers.training.gate import Gate
from workers.training.plan import TrainPlan, TrainReport

_RECENT_PASSES = 5
_NUM_SAMPLES = 8
_SAMPLE_CHARS = 400
_SMOOTHED = ("single_label_classification", "token-classification")


class Turnstile:
    """What every forward pass goes through: the gate of the device, if it also serves, and the stop request.

    `pulse` is told of each pass.
    """

    def __init__(self, gate: Gate | None, stop: StopRequest, pace: Pace, pulse: Pulse | None = None) -> None:
        self._pulse = pulse
        self._gate = gate
        self._stop = stop
        self._pace = pace
        self._recent_s: deque[float] = deque(maxlen=_RECENT_PASSES)
        self._passed_at: float | None = None

    def training_batch(self) -> None:
        """Wait for the gate; a step that was begun is finished even if a stop is asked for."""
        if self._pulse is not None:
            self._pulse.end_pass()
        self._wait_at_gate()
        if self._pulse is not None:
            self._pulse.begin_pass()

    def evaluation_batch(self) -> bool:
        """Wait for the gate; False if the evaluation should be broken off."""
        self.between_steps()
        self._wait_at_gate()
        return not self._stop.is_set

    def between_steps(self) -> None:
        """No step is taken from now on until the next `training_batch`."""
        if self._pulse is not None:
            self._pulse.between()

    def _wait_at_gate(self) -> None:
        if self._gate is None:
            return
        if self._passed_at is not None:
            self._recent_s.append(time.monotonic() - self._passed_at)
        # What a pass takes by itself: were the wait before it counted, each wait would allow for a longer one. The
        # median, because a checkpoint or a log line may lie between two passes.
        self._pace.gate_s += self._gate.pass_step(statistics.median(self._recent_s) if self._recent_s else 0.0)
        self._passed_at = time.monotonic()


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that does not depend on a checkpoint."""

    plan: TrainPlan
    report: TrainReport
    spec: ModelSpec
    device: torch.device
    train: EncodedRows
    validation: EncodedRows
    samples: list[str]
    """A few texts, to try the version with, and their rows."""
    sample_rows: list[Row]
    collate: Collator
    loss: TaskLoss
    evaluator: Evaluator | None
    pace: Pace
    conditions: Conditions
    turnstile: Turnstile


def prepare(plan: TrainPlan, stop: StopRequest, device: torch.device, pulse: Pulse) -> Prepared:
    """Read and encode the data of `plan`; InvalidPayload if the data or the options do not fit."""
    spec = parse_model_spec((plan.base.path / SPEC_FILE).read_bytes(), ref=plan.base.ref)
    dataset = load_dataset(plan)
    report = dataset.report
    encoder = Encoder(plan.base.path, spec, max_length=report.max_length, ref=plan.base.ref)
    validation = encoder.rows(dataset.validation, dataset)
    hyper = plan.options.hyperparameters
    rows_per_step = hyper.per_device_train_batch_size * hyper.gradient_accumulation_steps
    pace = Pace(rows_per_step=rows_per_step, num_validation=len(validation))
    gate = None if plan.gate is None else Gate(plan.gate, has_to_stop=lambda: stop.is_set, on_wait=pulse.waits)
    turnstile = Turnstile(gate, stop, pace, pulse)
    collate = Collator(pad_token_id=spec.pad_token_id, is_tagging=report.problem_type is None)
    loss = _loss(plan, report, device)
    dtype = _dtype(plan.options.dtype, device)
    samples = _samples(dataset)
    return Prepared(
        plan=plan,
        report=report,
        spec=spec,
        device=device,
        train=encoder.rows(dataset.train, dataset),
        validation=validation,
        samples=samples,
        sample_rows=encoder.texts(samples, is_tagging=report.problem_type is None),
        collate=collate,
        loss=loss,
        evaluator=_evaluator(plan, report, validation, loss, collate, turnstile, dtype),
        pace=pace,
        conditions=Conditions(device_kind(device), torch.get_num_threads(), dtype),
        turnstile=turnstile,
    )


def _loss(plan: TrainPlan, report: TrainReport, device: torch.device) -> TaskLoss:
    problem = report.problem_type or report.task
    smoothing = plan.options.hyperparameters.label_smoothing_factor
    if smoothing and problem not in _SMOOTHED:
        raise InvalidPayload(
            f"label_smoothing_factor is for one label a row, not for {problem}; leave it out",
            param="options.hyperparameters.label_smoothing_factor",
        )
    weights = class_weights(
        plan.options.class_weights,
        labels=report.labels,
        counts=report.class_counts.train,
        num_rows=report.num_train,
        problem=problem,
    )
    tensor = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device)
    return TaskLoss(problem, weights=tensor, label_smoothing=smoothing)


def _evaluator(
    plan: TrainPlan,
    report: TrainReport,
    rows: EncodedRows,
    loss: TaskLoss,
    collate: Collator,
    turnstile: Turnstile,
    dtype: str,
) -> Evaluator | None:
    if not len(rows):
        return None
    return Evaluator(
        rows,
        problem=report.problem_type or report.task,
        labels=report.labels,
        loss=loss,
        collate=collate,
        batch_size=plan.options.hyperparameters.per_device_eval_batch_size,
        autocast=torch.bfloat16 if dtype == "bfloat16" else None,
        before_batch=turnstile.evaluation_batch,
    )


def _dtype(wanted: str, device: torch.device) -> str:
    """The number format of the forward pass; InvalidPayload for one that a GPU does not compute in."""
    if wanted == "auto":
        return "bfloat16" if device.type == "cuda" and "bfloat16" in native_dtypes(device) else "float32"
    if wanted == "bfloat16" and device.type == "cuda" and wanted not in native_dtypes(device):
        raise InvalidPayload(
            f"a {device_kind(device)} does not compute in bfloat16; use float32", param="options.dtype"
        )
    return wanted


def _samples(dataset: Dataset) -> list[str]:
    texts = []
    for example in islice(iter([*dataset.validation, *dataset.train]), _NUM_SAMPLES):
        if isinstance(example, TextExample):
            texts.append(example.text[:_SAMPLE_CHARS])
        else:
            texts.append((example.text or " ".join(example.tokens))[:_SAMPLE_CHARS])
    return texts
