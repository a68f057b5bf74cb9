"""Transformers' Trainer with our own order, loss, evaluation and checkpoints: what it leaves to chance is fixed here.

It resumes bit-equal because a step depends on the weights, the optimizer, the schedule, the random state (all in the
checkpoint) and the rows (a function of seed and epoch), and on nothing that happens between steps.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback, PrinterCallback

from ondol.contract.errors import OndolError
from workers.training.child.base_model import TrainableModel
from workers.training.child.checkpoints import TRAINER_STATE_FILE, RunState, write_checkpoint, write_state
from workers.training.child.encoding import TOKENIZER_FILE
from workers.training.child.flow import Flow
from workers.training.child.history import logged
from workers.training.child.order import EpochBatches, EpochLoader
from workers.training.child.preparing import Prepared

_OPTIMIZER_FILE, _SCHEDULER_FILE = "optimizer.pt", "scheduler.pt"
_TOKENIZER_FILES = (TOKENIZER_FILE, "tokenizer_config.json")


class TrainingDiverged(OndolError):
    """The loss or the gradients are no numbers any more."""

    code = "training_diverged"


class FineTuneTrainer(Trainer):
    """Trains a prepared run; `flow` decides after each step what happens and hears of every checkpoint."""

    def __init__(self, prepared: Prepared, trainable: TrainableModel, flow: Flow) -> None:
        self._prepared = prepared
        self._options = prepared.plan.options
        self._trainable = trainable
        self._flow = flow
        self._resumed: RunState | None = None
        super().__init__(
            model=trainable.model,
            args=training_arguments(prepared),
            data_collator=prepared.collate,
            train_dataset=prepared.train,
            compute_loss_func=self._loss_of,
            callbacks=[flow],
        )
        # Our loss is the task's own; the models need not compute theirs.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(DefaultFlowCallback)
        self.remove_callback(PrinterCallback)

    def resume_with(self, state: RunState) -> None:
        """Take up the loss that was not logged yet; before `train`."""
        self._resumed = state

    def restore_losses(self) -> None:
        """Called when training begins and the Trainer has set its sums to zero."""
        if self._resumed is not None:
            self._tr_loss.fill_(self._resumed.loss_since_log)
            self._total_loss_scalar = self._resumed.loss_total
            self._globalstep_last_logged = self._resumed.last_logged_step

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Rows in the order of `EpochBatches`. Not prepared by accelerate, whose loader counts epochs from a resume."""
        hyper = self._options.hyperparameters
        batches = EpochBatches(
            self._prepared.train.lengths,
            batch_size=hyper.per_device_train_batch_size,
            seed=self._options.seed,
            group_by_length=hyper.train_sampling_strategy == "group_by_length",
        )
        return EpochLoader(self._prepared.train, batches, self._prepared.collate)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """One forward and backward pass, when the gate lets it through; TrainingDiverged for a loss that is none."""
        self._prepared.turnstile.training_batch()
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if loss.device.type == "cpu":  # on a GPU a look at every loss would wait for it; see below
            self._check_finite(loss)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The task's loss. A frozen backbone stays in eval mode: dropout on what does not learn only adds noise."""
        if self._options.backbone == "frozen":
            model.get_submodule(self._trainable.model.base_model_prefix).eval()
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Metrics on the validation rows, logged; empty where there are none, or when a stop broke it off."""
        if self._prepared.evaluator is None:
            return {}
        with self._prepared.pace.evaluation():
            metrics = self._prepared.evaluator.evaluate(self._trainable.model)
        if metrics is None:
            self.control.should_evaluate = False
            self.control.should_save = True
            self.control.should_training_stop = True
            return {}
        self.log(logged(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return logged(metrics)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:  # noqa: ARG002  # the Trainer's signature
        """Not counted: counting walks through all parameters at every step."""
        return 0

    def _loss_of(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        num_items = self._prepared.loss.count(labels) if num_items_in_batch is None else num_items_in_batch
        return self._prepared.loss(outputs.logits, labels, num_items)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:  # noqa: ARG002
        return sum(self._prepared.loss.count(batch["labels"]) for batch in batch_samples)

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, grad_norm: Any, *rest: Any, **named: Any) -> None:
        control = self.control
        if control.should_evaluate or control.should_save:
            self._prepared.turnstile.between_steps()
        if control.should_log or control.should_evaluate or control.should_save:
            # Before anything is written or judged; weights that are no numbers never reach a checkpoint.
            self._check_finite(tr_loss)
            if grad_norm is not None:
                self._check_finite(torch.as_tensor(grad_norm))
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *rest, **named)
        self._prepared.pace.begin_steps()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:  # noqa: ARG002  # the Trainer's signature
        started = time.monotonic()
        folder = write_checkpoint(self._prepared.plan.work_dir, self.state.global_step, self._fill_checkpoint)
        self._prepared.pace.checkpoints_s += time.monotonic() - started
        self._flow.on_checkpoint(self.state, folder)

    def _fill_checkpoint(self, folder: Path) -> None:
        assert self.optimizer is not None and self.lr_scheduler is not None, "steps were taken"
        self._trainable.model.save_pretrained(folder)
        for name in _TOKENIZER_FILES:
            if (self._prepared.plan.base.path / name).is_file():
                shutil.copyfile(self._prepared.plan.base.path / name, folder / name)
        torch.save(self.optimizer.state_dict(), folder / _OPTIMIZER_FILE)
        torch.save(self.lr_scheduler.state_dict(), folder / _SCHEDULER_FILE)
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        write_state(
            folder,
            RunState(
                conditions=self._prepared.conditions,
                fresh=self._trainable.fresh,
                loss_since_log=float(self._tr_loss),
                loss_total=self._total_loss_scalar,
                last_logged_step=self._globalstep_last_logged,
            ),
        )
        self.state.save_to_json(str(folder / TRAINER_STATE_FILE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing: the model was built from the checkpoint, where a missing weight is an error and not a warning."""

    def _check_finite(self, value: torch.Tensor) -> None:
        if bool(torch.isfinite(value).all()):
            return
        raise TrainingDiverged(
            f"the loss or its gradients became NaN or infinite near step {self.state.global_step + 1}; "
            f"lower the learning rate (it is {self.args.learning_rate:g}) or raise warmup_steps, "
            "and look for texts or numbers in the data that are far from all others",
            param="options.hyperparameters.learning_rate",
        )


def training_arguments(prepared: Prepared) -> TrainingArguments:
    """Our options as transformers takes them; what the Trainer would do beside training is switched off."""
    plan, is_cpu = prepared.plan, prepared.device.type == "cpu"
    hyper = plan.options.hyperparameters
    return TrainingArguments(
        output_dir=str(plan.work_dir),
        max_steps=prepared.report.max_steps,
        per_device_train_batch_size=hyper.per_device_train_batch_size,
        per_device_eval_batch_size=hyper.per_device_eval_batch_size,
        gradient_accumulation_steps=hyper.gradient_accumulation_steps,
        learning_rate=prepared.report.learning_rate,
        weight_decay=hyper.weight_decay,
        warmup_steps=hyper.warmup_steps,
        lr_scheduler_type=hyper.lr_scheduler_type,
        max_grad_norm=hyper.max_grad_norm,
        adam_beta1=hyper.adam_beta1,
        adam_beta2=hyper.adam_beta2,
        adam_epsilon=hyper.adam_epsilon,
        logging_steps=hyper.logging_steps,
        eval_strategy="no",
        save_strategy="no",
        logging_nan_inf_filter=False,
        average_tokens_across_devices=False,
        seed=plan.options.seed,
        use_cpu=is_cpu,
        bf16=prepared.conditions.dtype == "bfloat16",
        dataloader_pin_memory=not is_cpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
