"""What transformers reads of `tokenizer_config.json` beside the tokenizer itself: the unknown token, type ids."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ondol.contract.errors import ModelStoreError
from ondol.contract.model_spec import ModelSpec

_CONFIG_FILE = "tokenizer_config.json"
_MAX_KEPT = 32


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """The text of the unknown token, None where there is none; whether the tokenizer hands type ids to the model."""

    unknown_token: str | None
    gives_type_ids: bool


@lru_cache(maxsize=_MAX_KEPT)
def tokenizer_facts(folder: Path) -> TokenizerFacts:
    """The facts of the version in `folder`; ModelStoreError when its file is damaged."""
    try:
        stated = json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8"))
        return TokenizerFacts(stated.get("unk_token"), "token_type_ids" in stated["model_input_names"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ModelStoreError(
            f"{_CONFIG_FILE} in {folder.name} is not readable: {exc}; import the model again"
        ) from exc


def takes_type_ids(spec: ModelSpec, facts: TokenizerFacts) -> bool:
    """Whether the second text of a pair is told apart by type ids: tokenizer and model must both know them."""
    return facts.gives_type_ids and spec.type_vocab_size > 1
