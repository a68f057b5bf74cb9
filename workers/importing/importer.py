"""From any model folder to the canonical one: configuration, weights, tokenizer, modules, card and `ondol.json`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ondol.contract.errors import ModelRefused
from ondol.contract.model_spec import SPEC_FILE, ModelSpec, PoolingSpec, dump_model_spec
from workers.importing.architecture import CONFIG_FILE, Architecture, inspect_architecture, read_config
from workers.importing.prompts import Prompts, missing_prompt_warning, read_prompts
from workers.importing.sentence_modules import SentenceModules, StagedModules, read_sentence_modules, stage_modules
from workers.importing.source import SourceFolder
from workers.importing.tokenizing import CanonicalTokenizer, read_tokenizer, tokens_per_byte, write_tokenizer
from workers.importing.weights import stage_weights

_CARD = "README.md"
_MAX_CARD_BYTES = 2 * 1024 * 1024
_FALLBACK_LENGTH = 512

_log = logging.getLogger(__name__)


def import_model(source_path: Path, target: Path, *, convert_bin: bool) -> ModelSpec:
    """Read the model at `source_path`, write the canonical folder into the empty `target`, and say what it is.

    ModelRefused names the file at fault and what to do; `target` may then hold a part, which the caller removes.
    """
    warnings: list[str] = []
    root = SourceFolder(source_path)
    _log.info("reading %s", root.folder_name)
    found = read_sentence_modules(root, warnings)
    source = root.sub(found.transformer_path) if found else root
    config = read_config(source)
    prompts = found.prompts if found else read_prompts(root)
    _warn(warnings, missing_prompt_warning(root, config, prompts))
    weights = stage_weights(source, target, convert_bin=convert_bin)
    (target / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    architecture = inspect_architecture(target, is_sentence_model=found is not None, warnings=warnings)
    tokenizer = read_tokenizer(source, config, warnings, has_lower_case=found is not None and found.has_lower_case)
    _check_vocabulary(tokenizer, architecture)
    max_length = _effective_length(tokenizer, architecture, found, warnings)
    write_tokenizer(tokenizer, target, max_length=max_length)
    modules = StagedModules(PoolingSpec(), (), architecture.hidden_size)
    if found:
        modules = stage_modules(root, target, found, hidden_size=architecture.hidden_size, convert_bin=convert_bin)
    _write_card(root, target, architecture)
    spec = _spec(
        architecture, tokenizer, modules, prompts, max_length=max_length, dtype=weights.dtype, warnings=tuple(warnings)
    )
    (target / SPEC_FILE).write_bytes(dump_model_spec(spec))
    return spec


def _check_vocabulary(tokenizer: CanonicalTokenizer, architecture: Architecture) -> None:
    if tokenizer.largest_id >= architecture.vocab_size:
        raise ModelRefused(
            f"the tokenizer has ids up to {tokenizer.largest_id}, the weights have {architecture.vocab_size} word "
            "vectors; they belong to different models, or resize_token_embeddings was forgotten"
        )


def _effective_length(
    tokenizer: CanonicalTokenizer, architecture: Architecture, found: SentenceModules | None, warnings: list[str]
) -> int:
    positions = architecture.max_positions
    limits = [
        positions - architecture.position_offset if positions is not None else None,
        tokenizer.model_max_length,
        found.max_seq_length if found else None,
    ]
    known = [limit for limit in limits if limit is not None]
    if not known:
        warnings.append(f"the folder states no maximum length; {_FALLBACK_LENGTH} tokens are taken")
    length = min(known, default=_FALLBACK_LENGTH)
    if length < 1:
        raise ModelRefused(f"{CONFIG_FILE}: {positions} positions leave no room for a token")
    return length


def _write_card(source: SourceFolder, target: Path, architecture: Architecture) -> None:
    if source.has(_CARD) and source.file(_CARD).stat().st_size <= _MAX_CARD_BYTES:
        text = source.read_text(_CARD)
    else:
        text = (
            f"# {source.folder_name}\n\nA {architecture.name} ({architecture.model_type}), imported without a card.\n"
        )
    (target / _CARD).write_text(text, encoding="utf-8")


def _spec(
    architecture: Architecture,
    tokenizer: CanonicalTokenizer,
    modules: StagedModules,
    prompts: Prompts,
    *,
    max_length: int,
    dtype: str,
    warnings: tuple[str, ...],
) -> ModelSpec:
    pad = architecture.pad_token_id if architecture.pad_token_id is not None else tokenizer.pad_token_id
    parts: dict[str, Any] = {
        "pooling": modules.pooling,
        "modules": modules.modules,
        "prompts": prompts.by_name,
        "default_prompt_name": prompts.default_name,
        "query_prompt_name": prompts.query_name,
        "document_prompt_name": prompts.document_name,
    }
    return ModelSpec(
        architecture=architecture.name,
        model_type=architecture.model_type,
        hidden_size=architecture.hidden_size,
        num_layers=architecture.num_layers,
        vocab_size=architecture.vocab_size,
        num_parameters=architecture.num_parameters,
        max_length=max_length,
        max_positions=architecture.max_positions or max_length,
        dimensions=modules.dimensions,
        task=architecture.head.task,
        has_pooler=architecture.has_pooler,
        missing_weights=architecture.missing_weights,
        labels=architecture.head.labels,
        problem_type=architecture.head.problem_type,
        type_vocab_size=architecture.type_vocab_size,
        position_offset=architecture.position_offset,
        pad_token_id=pad or 0,
        sliding_window=architecture.sliding_window,
        tokens_per_byte=tokens_per_byte(tokenizer.backend),
        weights_dtype=dtype,
        warnings=warnings,
        **parts,
    )


def _warn(warnings: list[str], text: str | None) -> None:
    if text is not None:
        warnings.append(text)
