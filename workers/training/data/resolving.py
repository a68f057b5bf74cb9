"""What the options leave open, settled by the data: metric, learning rate, steps. And options that do not fit it."""

from __future__ import annotations

import math

from ondol.contract.errors import InvalidPayload
from ondol.contract.fine_tune import DEFAULT_LEARNING_RATE, DEFAULT_METRIC, TASK_METRICS, FineTuneOptions
from workers.training.data.examples import MULTI_LABEL, REGRESSION
from workers.training.data.labels import check_weights

DEFAULT_SHARE = 0.1


def resolve_metric(options: FineTuneOptions, trained: str) -> str:
    """The metric by which the best step is chosen; `trained` is the problem type, or the task. InvalidPayload for
    one that this task does not have.
    """
    wanted = options.hyperparameters.metric_for_best_model
    if wanted is None:
        return DEFAULT_METRIC[trained]
    if wanted not in TASK_METRICS[trained]:
        raise InvalidPayload(
            f"{trained} has no metric {wanted!r}; choose {', '.join(TASK_METRICS[trained])}",
            param="options.hyperparameters.metric_for_best_model",
        )
    return wanted


def resolve_learning_rate(options: FineTuneOptions) -> float:
    """The learning rate given, or the one that fits the backbone."""
    return options.hyperparameters.learning_rate or DEFAULT_LEARNING_RATE[options.backbone]


def resolve_steps(options: FineTuneOptions, num_train: int) -> tuple[int, int]:
    """Optimizer steps an epoch, and of the whole run."""
    wanted = options.hyperparameters
    per_epoch = math.ceil(num_train / (wanted.per_device_train_batch_size * wanted.gradient_accumulation_steps))
    if wanted.max_steps > 0:
        return per_epoch, wanted.max_steps
    return per_epoch, max(1, math.ceil(wanted.num_train_epochs * per_epoch))


def check_options(options: FineTuneOptions, trained: str, labels: list[str], *, num_validation: int) -> None:
    """InvalidPayload for options that this training cannot follow."""
    if options.early_stopping is not None and not num_validation:
        message = "early_stopping needs validation rows; give validation_file, or a validation_split above 0"
        raise InvalidPayload(message, param="options.early_stopping")
    if trained in (REGRESSION, MULTI_LABEL) and options.hyperparameters.label_smoothing_factor:
        message = f"label_smoothing_factor goes with one label a row, not with {trained}; leave it out"
        raise InvalidPayload(message, param="options.hyperparameters.label_smoothing_factor")
    if options.class_weights is not None and trained == REGRESSION:
        raise InvalidPayload("class_weights goes with classes, not with regression", param="options.class_weights")
    if isinstance(options.class_weights, dict):
        check_weights(options.class_weights, labels)
