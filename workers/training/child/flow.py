"""What happens after each step: log, evaluate, checkpoint, stop. All of it is decided at step ends, in one place.

At most one checkpoint a step: transformers' own flow saves at a step, and again into the same folder at an epoch's end.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ondol.contract.fine_tune import FineTuneOptions
from workers.training.child.best import BestKeeper
from workers.training.child.events import EventWriter
from workers.training.child.history import Evaluation, evaluations_in, is_exhausted
from workers.training.child.pace import Pace
from workers.training.child.stopping import StopRequest
from workers.training.plan import TrainReport

if TYPE_CHECKING:
    from workers.training.child.trainer import FineTuneTrainer


class Schedule:
    """At which steps the validation rows are evaluated: at each epoch's end or every `eval_steps`, and at the end."""

    def __init__(self, options: FineTuneOptions, report: TrainReport) -> None:
        self._every = options.hyperparameters.eval_steps or report.steps_per_epoch
        self._max_steps = report.max_steps
        self._has_rows = report.num_validation > 0

    def is_due(self, step: int) -> bool:
        """Whether there is an evaluation after `step`."""
        return self._has_rows and step > 0 and (step % self._every == 0 or step >= self._max_steps)

    def num_left(self, step: int) -> int:
        """Evaluations after steps later than `step`."""
        if not self._has_rows or step >= self._max_steps:
            return 0
        return self._max_steps // self._every - step // self._every + (self._max_steps % self._every > 0)


class Flow(TrainerCallback):
    """The callback of a run; `trainer` is set once the trainer is there."""

    def __init__(
        self,
        options: FineTuneOptions,
        report: TrainReport,
        *,
        events: EventWriter,
        stop: StopRequest,
        pace: Pace,
        keeper: BestKeeper,
    ) -> None:
        self._options = options
        self._report = report
        self._events = events
        self._stop = stop
        self._pace = pace
        self._keeper = keeper
        self._saved_at = time.monotonic()
        self.schedule = Schedule(options, report)
        self.trainer: FineTuneTrainer | None = None
        self.has_stopped = False
        """Whether training ended because it was asked to."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Take up the sums of the run that is resumed."""
        assert self.trainer is not None
        self.trainer.restore_losses()
        self._saved_at = time.monotonic()
        self._pace.begin_steps()

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002  # the callback's signature
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Decide by step number, clock and stop request."""
        self._pace.end_step()
        with self._pace.callback():
            step = state.global_step
            is_last = step >= state.max_steps
            control.should_log = is_last or step % self._options.hyperparameters.logging_steps == 0
            control.should_training_stop = is_last or self._stop.is_set
            # Whoever wants a stop gets it now; the evaluation that was due is made up for by the resumed run.
            control.should_evaluate = self.schedule.is_due(step) and not self._stop.is_set
            is_old = time.monotonic() - self._saved_at >= self._options.checkpoint_every_s
            control.should_save = control.should_evaluate or is_last or is_old or self._stop.is_set

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002  # the callback's signature
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **found: Any,
    ) -> None:
        """Report a line of training metrics."""
        logs = found.get("logs") or {}
        if "loss" not in logs:
            return
        with self._pace.callback():
            step = state.global_step
            self._events.send(
                "metrics",
                step=step,
                epoch=self.epoch(step),
                loss=logs["loss"],
                learning_rate=logs.get("learning_rate"),
                grad_norm=logs.get("grad_norm"),
                samples_per_s=self._pace.samples_per_s(),
                eta_s=self._pace.eta_s(
                    num_steps=state.max_steps - step, num_evaluations=self.schedule.num_left(step - 1)
                ),
            )

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002  # the callback's signature
        state: TrainerState,
        control: TrainerControl,
        **found: Any,
    ) -> None:
        """Report an evaluation, and stop early if it is time."""
        with self._pace.callback():
            self.report_evaluation(state.global_step, found["metrics"])
            history = evaluations_in(state.log_history)
            if is_exhausted(history, self._report.metric, self._options.early_stopping):
                control.should_training_stop = True

    def report_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Send the `evaluation` event."""
        self._events.send("evaluation", step=step, epoch=self.epoch(step), metrics=metrics)

    def on_checkpoint(self, state: TrainerState, folder: Path) -> None:
        """Report a complete checkpoint folder."""
        self.report_checkpoint(state.global_step, state.log_history, folder)
        self._saved_at = time.monotonic()

    def report_checkpoint(self, step: int, log_history: list[dict[str, Any]], folder: Path) -> None:
        """Keep the weights if they are the best, and send the `checkpoint` event."""
        history = evaluations_in(log_history)
        metrics = history[-1].metrics if history and history[-1].step == step else {}
        is_best = False
        if metrics or self._report.num_validation == 0:
            is_best = self._keeper.offer(Evaluation(step, metrics), folder)
        self._events.send("checkpoint", step=step, folder=str(folder), metrics=metrics, is_best=is_best)

    def epoch(self, step: int) -> float:
        """Epochs done after `step` steps."""
        return round(step / self._report.steps_per_epoch, 4)
