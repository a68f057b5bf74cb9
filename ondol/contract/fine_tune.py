"""What a fine-tune job may be asked: `options` of kind `fine-tune`. Hyperparameters bear `TrainingArguments` names.

What stands as None is resolved when the data has been read, and then frozen in the job (`resolved`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ondol.contract.model_ref import NAME_PATTERN

ModelName = Annotated[str, Field(pattern=rf"^{NAME_PATTERN}$")]
FileId = Annotated[str, Field(pattern=r"^file_[0-9a-z]{26}$")]
ColumnName = Annotated[str, Field(min_length=1, max_length=256)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(strict=True, ge=1, le=100_000_000)]

TASK_METRICS: dict[str, tuple[str, ...]] = {
    "single_label_classification": ("accuracy", "f1_macro", "f1_weighted", "loss"),
    "multi_label_classification": ("f1_macro", "f1_micro", "f1_weighted", "accuracy", "loss"),
    "regression": ("spearman", "pearson", "mse", "mae", "loss"),
    "token-classification": ("f1", "precision", "recall", "accuracy", "loss"),
}
"""Metrics of an evaluation, by what is trained."""

DEFAULT_METRIC = {
    "single_label_classification": "f1_macro",
    "multi_label_classification": "f1_macro",
    "regression": "spearman",
    "token-classification": "f1",
}
LOWER_IS_BETTER = frozenset({"loss", "mse", "mae"})

DEFAULT_LEARNING_RATE = {"full": 2e-5, "frozen": 1e-3}
"""Of a training that names none, by backbone."""

CONFIG_OVERRIDES = frozenset(
    {
        "attention_dropout",
        "attention_probs_dropout_prob",
        "classifier_dropout",
        "classifier_dropout_prob",
        "dropout",
        "embedding_dropout",
        "hidden_dropout_prob",
        "mlp_dropout",
        "seq_classif_dropout",
    }
)
"""Configuration keys that leave the weights' shapes alone; others are refused."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Columns(_Strict):
    """Which column of the files plays which part; None: the column of that name."""

    text: ColumnName | None = None
    text_pair: ColumnName | None = None
    label: ColumnName | None = None
    tokens: ColumnName | None = None
    tags: ColumnName | None = None
    entities: ColumnName | None = None


class EarlyStopping(_Strict):
    """Stop when the metric has not risen by more than `threshold` in so many evaluations."""

    patience: Annotated[int, Field(strict=True, ge=1, le=1000)] = 3
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.0


class Hyperparameters(_Strict):
    """A part of transformers' `TrainingArguments`, with our defaults."""

    num_train_epochs: Annotated[float, Field(gt=0, le=10_000)] = 3.0
    max_steps: Annotated[int, Field(strict=True, ge=-1, le=100_000_000)] = -1
    per_device_train_batch_size: Annotated[int, Field(strict=True, ge=1, le=4096)] = 16
    per_device_eval_batch_size: Annotated[int, Field(strict=True, ge=1, le=4096)] = 64
    gradient_accumulation_steps: Annotated[int, Field(strict=True, ge=1, le=4096)] = 1
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """None: that of the backbone in `DEFAULT_LEARNING_RATE`."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.01
    warmup_steps: Annotated[float, Field(ge=0, le=100_000_000)] = 0.1
    """Below 1: a share of all steps, else a number of steps."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = "linear"
    max_grad_norm: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    label_smoothing_factor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    train_sampling_strategy: Literal["group_by_length", "random"] = "group_by_length"
    eval_strategy: Literal["epoch", "steps"] = "epoch"
    eval_steps: Count | None = None
    logging_steps: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 10
    metric_for_best_model: Annotated[str, Field(max_length=64)] | None = None

    @model_validator(mode="after")
    def _steps_where_they_count(self) -> Hyperparameters:
        if (self.eval_strategy == "steps") != (self.eval_steps is not None):
            raise ValueError("eval_steps is given with eval_strategy steps, and only then")
        if self.max_steps == 0:
            raise ValueError("max_steps is at least 1, or -1 for the number that the epochs give")
        return self


class FineTuneOptions(_Strict):
    """Options of a fine-tune job. `model` of the request is the base; `output_name` is the model that is published."""

    output_name: ModelName
    train_file: FileId
    validation_file: FileId | None = None
    validation_split: Annotated[float, Field(ge=0, le=0.9)] | None = None
    """Share of the training rows that is held out, stratified by the seed; None: a tenth, unless a file is given."""
    task: Literal["text-classification", "token-classification"] | None = None
    """None: by the columns that the files have."""
    columns: Columns = Columns()
    label_delimiter: Annotated[str, Field(min_length=1, max_length=8)] | None = None
    """Splits a label cell into several labels; with it the training is multi-label."""
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = None
    alias: ModelName | None = None
    """Moved to the new version when it is published, unless somebody moved it while the training ran."""
    head: Literal["linear"] = "linear"
    backbone: Literal["full", "frozen"] = "full"
    freeze_word_embeddings: bool = False
    config: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(default_factory=dict, max_length=16)
    hyperparameters: Hyperparameters = Hyperparameters()
    max_length: Annotated[int, Field(strict=True, ge=4, le=1_000_000)] | None = None
    """Tokens to which training and validation texts are cut; None: the base's own maximum, at most 512."""
    early_stopping: EarlyStopping | None = None
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0, le=1e6)]] | None = None
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**31)] = 42
    max_runtime_s: Annotated[float, Field(gt=0, le=30 * 86_400)] | None = None
    """Longest that all attempts together may train."""
    checkpoint_every_s: Annotated[float, Field(ge=1, le=86_400)] = 120.0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the forward pass while training; auto: float32 on a CPU, bfloat16 where a GPU has it."""
    validate_only: bool = False

    @model_validator(mode="after")
    def _options_fit_each_other(self) -> FineTuneOptions:
        if self.validation_file is not None and self.validation_split:
            raise ValueError("give validation_file or validation_split, not both")
        unknown = sorted(set(self.config) - CONFIG_OVERRIDES)
        if unknown:
            raise ValueError(f"config may set {', '.join(sorted(CONFIG_OVERRIDES))}; not {', '.join(unknown)}")
        if self.task == "token-classification" and (self.problem_type or self.label_delimiter):
            raise ValueError("problem_type and label_delimiter belong to text-classification")
        if self.label_delimiter and self.problem_type not in (None, "multi_label_classification"):
            raise ValueError("label_delimiter goes with multi_label_classification")
        return self
