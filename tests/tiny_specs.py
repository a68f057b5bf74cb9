"""`ondol.json` for test folders, written from `config.json` by hand: tests of the device process need no import."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ondol.contract.model_spec import SPEC_FILE, ModelSpec, PoolingSpec, dump_model_spec
from workers.device.engine import ModelHandle

_OFFSET_TYPES = frozenset({"roberta", "xlm-roberta", "mpnet"})
_POOLER_TYPES = frozenset({"bert", "roberta", "xlm-roberta", "albert", "mpnet"})
_HEADS_WITH_POOLER = frozenset({"BertForSequenceClassification", "AlbertForSequenceClassification"})
_TASKS = {"ForSequenceClassification": "text-classification", "ForTokenClassification": "token-classification"}


def model_spec_of(folder: Path, **changes: Any) -> ModelSpec:
    """The spec of a plain folder with mean pooling, or of one with a head; `changes` replaces fields."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model_type = config["model_type"]
    pad_token_id = config.get("pad_token_id") or 0
    offset = pad_token_id + 1 if model_type in _OFFSET_TYPES else 0
    hidden = config.get("hidden_size", config.get("dim", 0))
    architecture = (config.get("architectures") or ["AutoModel"])[0]
    task = next((task for suffix, task in _TASKS.items() if architecture.endswith(suffix)), "embedding")
    unstated = "single_label_classification" if task == "text-classification" else None
    spec = ModelSpec(
        architecture=architecture,
        model_type=model_type,
        hidden_size=hidden,
        num_layers=config.get("num_hidden_layers", config.get("n_layers", 0)),
        vocab_size=config["vocab_size"],
        num_parameters=0,
        max_length=min(64, config["max_position_embeddings"] - offset),
        max_positions=config["max_position_embeddings"],
        dimensions=hidden,
        pooling=PoolingSpec(),
        task=task,
        has_pooler=model_type in _POOLER_TYPES if task == "embedding" else architecture in _HEADS_WITH_POOLER,
        labels=tuple(config["id2label"].values()) if task != "embedding" else (),
        problem_type=config.get("problem_type") or unstated,
        type_vocab_size=config.get("type_vocab_size", 0),
        position_offset=offset,
        pad_token_id=pad_token_id,
        sliding_window=config["local_attention"] // 2 if model_type == "modernbert" else None,
    )
    return replace(spec, **changes)


def write_spec(folder: Path, spec: ModelSpec) -> Path:
    """Put `spec` beside the weights; the folder."""
    (folder / SPEC_FILE).write_bytes(dump_model_spec(spec))
    return folder


def model_handle(folder: Path, dtype: str = "float32") -> ModelHandle:
    """The folder as the worker would name it."""
    return ModelHandle(key=f"{folder.name}:{dtype}", ref=f"{folder.name}:1", path=folder, dtype=dtype)
