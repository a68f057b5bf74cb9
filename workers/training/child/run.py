"""One training run, from `started` to `finished` or `stopped`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ondol.contract.errors import OutOfDeviceMemory
from ondol.contract.model_spec import dump_model_spec
from workers.training.child.base_model import TrainableModel, base_for_training, choose_trainable, saved_for_training
from workers.training.child.best import BestKeeper, known_checkpoints
from workers.training.child.checkpoints import Checkpoint, read_checkpoint, with_log_entry
from workers.training.child.events import EventWriter
from workers.training.child.flow import Flow
from workers.training.child.history import evaluations_in, is_exhausted, logged
from workers.training.child.preparing import Prepared, prepare
from workers.training.child.publishing import make_version
from workers.training.child.pulse import Pulse
from workers.training.child.stopping import StopRequest
from workers.training.child.trainer import FineTuneTrainer
from workers.training.plan import TrainPlan

LogHistory = list[dict[str, Any]]
_MEMORY_WORDS = ("not enough memory", "DefaultCPUAllocator", "can't allocate memory")


def run_training(plan: TrainPlan, events: EventWriter, stop: StopRequest, device: torch.device) -> None:
    """Train as `plan` says; the last event is `finished`, or `stopped` if `stop` was set before the end.

    OndolError says why the run failed; its work folder is left as it is.
    """
    with _training_errors(plan):
        prepared = prepare(plan, stop, device, Pulse(events))
        if stop.is_set:
            events.send("stopped", step=0)
        else:
            _Run(prepared, events, stop).run()


class _Run:
    """A run whose data is there."""

    def __init__(self, prepared: Prepared, events: EventWriter, stop: StopRequest) -> None:
        plan, report = prepared.plan, prepared.report
        self._prepared = prepared
        self._events = events
        self._stop = stop
        self._resumed = None if plan.resume_from is None else read_checkpoint(plan.resume_from)
        self._step = 0 if self._resumed is None else self._resumed.step
        self._keeper = BestKeeper(report.metric, plan.work_dir)
        self._flow = Flow(plan.options, report, events=events, stop=stop, pace=prepared.pace, keeper=self._keeper)
        self._trainable = self._load_model()
        self._trainer = FineTuneTrainer(prepared, self._trainable, self._flow)
        self._flow.trainer = self._trainer

    def run(self) -> None:
        """Train what is left and make the version."""
        self._send_started()
        if self._resumed is not None:
            self._keeper.restore(known_checkpoints(self._resumed, self._prepared.plan.best_from))
            self._resumed = self._make_up_for_evaluation(self._resumed)
            self._trainer.resume_with(self._resumed.state)
        history: LogHistory = [] if self._resumed is None else self._resumed.log_history
        if not self._is_done(history) and not self._stop.is_set:
            folder = None if self._resumed is None else str(self._resumed.folder)
            self._trainer.train(resume_from_checkpoint=folder)
            self._step, history = self._trainer.state.global_step, self._trainer.state.log_history
        if self._is_done(history) and not self._stop.is_set:
            self._finish(history)
        else:
            self._events.send("stopped", step=self._step)

    def _load_model(self) -> TrainableModel:
        plan, report = self._prepared.plan, self._prepared.report
        if self._resumed is None:
            trainable = base_for_training(plan.base.path, self._prepared.spec, plan.options, report, ref=plan.base.ref)
        else:
            fresh = self._resumed.state.fresh
            trainable = saved_for_training(
                self._resumed.folder, report.task, fresh=fresh, what=f"the checkpoint of step {self._step}"
            )
        choose_trainable(trainable, plan.options)
        return trainable

    def _send_started(self) -> None:
        parameters = list(self._trainable.model.parameters())
        is_inexact = self._resumed is not None and self._resumed.state.conditions != self._prepared.conditions
        self._events.send(
            "started",
            max_steps=self._prepared.report.max_steps,
            num_train=len(self._prepared.train),
            num_validation=len(self._prepared.validation),
            num_parameters=sum(parameter.numel() for parameter in parameters),
            num_trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            resumed_from=None if self._resumed is None else self._step,
            resume_inexact=is_inexact,
        )

    def _make_up_for_evaluation(self, resumed: Checkpoint) -> Checkpoint:
        """Evaluate where the run was stopped before it could: the same checkpoint, with the metrics in its log."""
        evaluator = self._prepared.evaluator
        if evaluator is None or self._is_evaluated(resumed.log_history) or not self._flow.schedule.is_due(resumed.step):
            return resumed
        metrics = evaluator.evaluate(self._trainable.model)
        if metrics is None:
            return resumed
        entry = {**logged(metrics), "epoch": self._flow.epoch(resumed.step), "step": resumed.step}
        evaluated = with_log_entry(resumed, self._prepared.plan.work_dir, entry)
        self._flow.report_evaluation(evaluated.step, metrics)
        self._flow.report_checkpoint(evaluated.step, evaluated.log_history, evaluated.folder)
        return evaluated

    def _is_evaluated(self, history: LogHistory) -> bool:
        evaluations = evaluations_in(history)
        return bool(evaluations) and evaluations[-1].step == self._step

    def _is_done(self, history: LogHistory) -> bool:
        """Whether the early stop came, or all steps were taken and the last of them was evaluated."""
        report = self._prepared.report
        if is_exhausted(evaluations_in(history), report.metric, self._prepared.plan.options.early_stopping):
            return True
        return self._step >= report.max_steps and (self._prepared.evaluator is None or self._is_evaluated(history))

    def _finish(self, history: LogHistory) -> None:
        best = self._keeper.best
        assert best is not None, "a run that is done has written a checkpoint"
        version = make_version(self._prepared, best, evaluations_in(history))
        self._events.send(
            "finished",
            step=self._step,
            best_step=best.evaluation.step,
            metrics=best.evaluation.metrics,
            folder=str(version.folder),
            spec=json.loads(dump_model_spec(version.spec)),
            dtype=version.dtype,
            overhead=self._prepared.pace.overhead(),
            files=version.files,
        )


@contextmanager
def _training_errors(plan: TrainPlan) -> Iterator[None]:
    """Memory that ran out, with what can be done about it; all else that torch raises is a fault that ends us."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as exc:
        if isinstance(exc, RuntimeError) and not is_out_of_memory(exc):
            raise
        size = plan.options.hyperparameters.per_device_train_batch_size
        raise OutOfDeviceMemory(
            f"batches of {size} rows do not fit into the device's memory; lower per_device_train_batch_size "
            "(and raise gradient_accumulation_steps by as much to train the same), or max_length",
            param="options.hyperparameters.per_device_train_batch_size",
        ) from exc


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether `error` is torch saying that there is no memory, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in _MEMORY_WORDS)
