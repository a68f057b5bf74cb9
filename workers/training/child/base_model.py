"""The model to train: the base with a head for the task, what of it is new, and what of it learns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from ondol.contract.errors import InvalidPayload, ModelCannot, ModelRefused
from ondol.contract.fine_tune import FineTuneOptions
from ondol.contract.model_spec import ModelSpec
from workers.training.plan import TrainReport

_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
_LOAD_ERRORS = (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, RuntimeError, SafetensorError)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TrainableModel:
    """A float32 model on the CPU; `fresh` are the parameters that the base did not have, which always learn."""

    model: PreTrainedModel
    fresh: tuple[str, ...]


def base_for_training(
    folder: Path, spec: ModelSpec, options: FineTuneOptions, report: TrainReport, *, ref: str
) -> TrainableModel:
    """The base in `folder` with the head of the task; new parameters are drawn by the seed.

    A base that is a classifier of the very same labels keeps its head. ModelCannot where transformers has no such
    head for the architecture, InvalidPayload for `config` keys that it does not know.
    """
    config = _config(folder, options, report, ref=ref)
    torch.manual_seed(options.seed)
    model, info = _load(folder, report.task, config, ref=ref)
    fresh = set(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]}
    if spec.task == report.task and not _has_same_head(spec, report):
        fresh |= _renew_head(model, config, report.task, options.seed)
    head = {name for name, _ in model.named_parameters() if not _is_backbone(model, name)}
    log.info(
        "training.head",
        base=ref,
        head="kept from the base" if not fresh & head else "new, drawn by the seed",
        num_fresh=len(fresh),
        fresh=sorted(fresh)[:8],
    )
    return TrainableModel(model, tuple(sorted(fresh)))


def saved_for_training(folder: Path, task: str, *, fresh: tuple[str, ...], what: str) -> TrainableModel:
    """The model as `save_pretrained` left it in `folder`; ModelRefused unless every weight is there."""
    model, info = _load(folder, task, None, ref=what)
    lost = sorted(info["missing_keys"]) + [name for name, *_ in info["mismatched_keys"]]
    if lost:
        raise ModelRefused(f"{what} lacks the weights {', '.join(map(str, lost[:5]))}")
    return TrainableModel(model, fresh)


def choose_trainable(trained: TrainableModel, options: FineTuneOptions) -> None:
    """Set `requires_grad` by `backbone` and `freeze_word_embeddings`; fresh parameters always learn."""
    fresh = set(trained.fresh)
    for name, parameter in trained.model.named_parameters():
        learns = options.backbone == "full" or name in fresh or not _is_backbone(trained.model, name)
        parameter.requires_grad = learns
    if options.freeze_word_embeddings:
        trained.model.get_input_embeddings().requires_grad_(requires_grad=False)


def _config(folder: Path, options: FineTuneOptions, report: TrainReport, *, ref: str) -> PretrainedConfig:
    labels = report.labels if report.problem_type != "regression" else (report.labels or ["score"])[:1]
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except _LOAD_ERRORS as exc:
        raise ModelRefused(f"the configuration of {ref} cannot be read: {exc}") from exc
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = report.problem_type
    for key, value in options.config.items():
        if not hasattr(config, key):
            raise InvalidPayload(
                f"the base ({config.model_type}) has no {key} in its configuration; leave it out",
                param=f"options.config.{key}",
            )
        setattr(config, key, value)
    found: PretrainedConfig = config
    return found


def _load(
    folder: Path, task: str, config: PretrainedConfig | None, *, ref: str
) -> tuple[PreTrainedModel, dict[str, Any]]:
    auto_class = getattr(transformers, _CLASSES[task])
    known = AutoConfig.from_pretrained(folder, local_files_only=True) if config is None else config
    if type(known) not in auto_class._model_mapping:
        raise ModelCannot(
            f"{ref} is a {known.model_type}, for which transformers has no {task} head; choose another base",
            param="model",
        )
    try:
        model, info = auto_class.from_pretrained(
            folder,
            config=known,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except _LOAD_ERRORS as exc:
        raise ModelRefused(f"{ref} cannot be loaded for training: {type(exc).__name__}: {exc}") from exc
    return model, info


def _has_same_head(spec: ModelSpec, report: TrainReport) -> bool:
    return list(spec.labels) == report.labels and spec.problem_type == report.problem_type


def _renew_head(model: PreTrainedModel, config: PretrainedConfig, task: str, seed: int) -> set[str]:
    """Replace everything outside the backbone by numbers drawn by the seed; the names."""
    torch.manual_seed(seed)
    new = getattr(transformers, _CLASSES[task]).from_config(config, dtype=torch.float32)
    drawn = dict(new.named_parameters())
    names = {name for name, _ in model.named_parameters() if not _is_backbone(model, name)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.copy_(drawn[name])
    return names


def _is_backbone(model: PreTrainedModel, name: str) -> bool:
    return name.startswith(f"{model.base_model_prefix}.")
