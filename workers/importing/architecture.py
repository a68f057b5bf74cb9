"""The transformer itself: its configuration checked, its weights loaded once, and what a worker must know of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel

from ondol.contract.errors import ModelRefused
from workers.importing.label_names import complete_label_names, read_label_names
from workers.importing.source import SourceFolder

CONFIG_FILE = "config.json"
_BOUNDS = {
    "hidden_size": 65_536,
    "num_hidden_layers": 1_024,
    "vocab_size": 20_000_000,
    "max_position_embeddings": 20_000_000,
    "intermediate_size": 1_048_576,
    "num_attention_heads": 4_096,
}
_HEADS = {
    "ForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
    "ForTokenClassification": ("token-classification", "AutoModelForTokenClassification"),
    "ForQuestionAnswering": ("question-answering", "AutoModelForQuestionAnswering"),
    "ForMaskedLM": ("fill-mask", "AutoModelForMaskedLM"),
    "ForPreTraining": ("fill-mask", "AutoModelForMaskedLM"),
}
_LABELLED = frozenset({"text-classification", "token-classification"})
_POOLER = re.compile(r"(^|\.)pooler\.")
_SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True)
class Head:
    """The task that the weights were trained for; `embedding` where no head was."""

    task: str = "embedding"
    labels: tuple[str, ...] = ()
    problem_type: str | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """The model as workers load it: with its head where they run that, else the base model alone.

    `has_pooler` is the loaded base's; `missing_weights` would be random numbers if they were used.
    """

    name: str
    model_type: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    num_parameters: int
    max_positions: int | None
    position_offset: int
    type_vocab_size: int
    pad_token_id: int | None
    sliding_window: int | None
    has_pooler: bool
    missing_weights: tuple[str, ...]
    head: Head


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model as workers load it, with or without head, and the names of weights that it lacks or does not use."""

    model: PreTrainedModel
    head: Head
    missing: frozenset[str]
    unused: frozenset[str]


def read_config(source: SourceFolder) -> dict[str, Any]:
    """`config.json` without keys that lead elsewhere; ModelRefused for code, unknown and unsupported models."""
    config = source.read_object(CONFIG_FILE)
    model_type = config.get("model_type")
    if "auto_map" in config:
        raise ModelRefused(
            f"{CONFIG_FILE} has an auto_map: code that comes with a model is never run; "
            "import a model whose architecture is part of transformers"
        )
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ModelRefused(f"{CONFIG_FILE}: model_type {model_type!r} is unknown to transformers")
    for key in ("quantization_config", "is_encoder_decoder"):
        if config.get(key):
            raise ModelRefused(f"{CONFIG_FILE} has {key}, which is not supported; import an unquantised encoder")
    for key, limit in _BOUNDS.items():
        value = config.get(key)
        if value is not None and (type(value) is not int or not 0 < value <= limit):
            raise ModelRefused(f"{CONFIG_FILE}: {key} is {str(value)[:40]}, allowed is 1 to {limit}")
    kept = {key: value for key, value in config.items() if not key.startswith("_") and "attn_implementation" not in key}
    return complete_label_names(kept)


def inspect_architecture(folder: Path, *, is_sentence_model: bool, warnings: list[str]) -> Architecture:
    """What the staged `folder` (config and weights) is; loads it once, and once more with its head.

    ModelRefused if config and weights do not fit together, or if weights other than a pooler or a head are missing.
    """
    base, info = _load("AutoModel", folder)
    config = base.config
    lost = sorted(name for name in info["missing_keys"] if not _POOLER.search(name))
    if lost:
        raise ModelRefused(f"the weights lack {_some(lost)}; they belong to another {CONFIG_FILE}")
    name = _architecture_name(config, base)
    loaded = _Loaded(base, Head(), frozenset(info["missing_keys"]), frozenset(info["unexpected_keys"]))
    if not is_sentence_model:
        loaded = _inspect_head(name, folder, loaded, warnings)
    if loaded.unused:
        warnings.append(f"weights that {name} has no use for are not loaded: {_some(sorted(loaded.unused))}")
    hidden_size, words = getattr(config, "hidden_size", None), base.get_input_embeddings()
    if not isinstance(hidden_size, int) or not isinstance(words, nn.Embedding):
        raise ModelRefused(f"{CONFIG_FILE}: {config.model_type} is no text encoder")
    embeddings = getattr(base, "embeddings", None)
    positions = getattr(embeddings, "position_embeddings", None)
    padding = getattr(positions, "padding_idx", None)
    return Architecture(
        name=name,
        model_type=config.model_type,
        hidden_size=hidden_size,
        num_layers=int(config.num_hidden_layers),
        vocab_size=words.num_embeddings,
        num_parameters=loaded.model.num_parameters(),
        max_positions=_positive(getattr(config, "max_position_embeddings", None)),
        position_offset=0 if padding is None else padding + 1,
        type_vocab_size=_positive(getattr(config, "type_vocab_size", None)) or 0,
        pad_token_id=config.pad_token_id if isinstance(config.pad_token_id, int) else None,
        sliding_window=_positive(getattr(config, "sliding_window", None)),
        has_pooler=_has_pooler(loaded),
        missing_weights=tuple(sorted(loaded.missing)),
        head=loaded.head,
    )


def _load(auto_class: str, folder: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except MemoryError:
        raise
    except Exception as exc:  # a hostile config.json fails anywhere in the library
        reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0][:300]
        raise ModelRefused(f"transformers cannot load this model: {reason}") from exc
    if info["mismatched_keys"]:
        name, stored, wanted = sorted(info["mismatched_keys"])[0]
        raise ModelRefused(f"{name} has shape {tuple(stored)} in the weights and {tuple(wanted)} by {CONFIG_FILE}")
    return model, info


def _inspect_head(name: str, folder: Path, base: _Loaded, warnings: list[str]) -> _Loaded:
    """The model with the head that the architecture's name promises, `base` with what is missing if that is untrained.

    Only labelled heads are run by workers: of others the task is told, and the model stays the base.
    """
    config = base.model.config
    promised = next((value for suffix, value in _HEADS.items() if name.endswith(suffix)), None)
    if promised is None:
        return base
    task, auto_class = promised
    model, info = _load(auto_class, folder)
    lost = frozenset(info["missing_keys"])
    if lost:
        if config.architectures:
            warnings.append(f"the head of {name} was not trained: the weights lack {_some(sorted(lost))}")
        return replace(base, missing=base.missing | lost)
    unused = frozenset(info["unexpected_keys"])
    if task not in _LABELLED:
        return replace(base, head=Head(task), unused=unused)
    if not isinstance(getattr(model, model.base_model_prefix, None), nn.Module):
        warnings.append(f"{name} does not say where its base model is, so that its head is not run")
        return replace(base, unused=unused)
    return _Loaded(model, _labelled_head(task, model.config, warnings), missing=frozenset(), unused=unused)


def _labelled_head(task: str, config: PretrainedConfig, warnings: list[str]) -> Head:
    """Labels and problem type; unstated, the problem is one of single labels, as the libraries take it to be."""
    labels = read_label_names(config.id2label or {}, warnings=warnings)
    if task != "text-classification":
        return Head(task, labels)
    return Head(task, labels, config.problem_type or "single_label_classification")


def _has_pooler(loaded: _Loaded) -> bool:
    """Whether the base model that workers run has a trained pooler; many heads load theirs without."""
    base = getattr(loaded.model, loaded.model.base_model_prefix, loaded.model)
    return getattr(base, "pooler", None) is not None and not any(map(_POOLER.search, loaded.missing))


def _architecture_name(config: PretrainedConfig, base: PreTrainedModel) -> str:
    stated = config.architectures
    name = stated[0] if isinstance(stated, list) and stated else type(base).__name__
    if not isinstance(name, str) or not hasattr(transformers, name):
        raise ModelRefused(f"{CONFIG_FILE}: the architecture {str(name)[:120]!r} is unknown to transformers")
    return name


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN_NAMES} more" if len(listed) > _SHOWN_NAMES else ""
    return ", ".join(listed[:_SHOWN_NAMES]) + more
