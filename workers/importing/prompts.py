"""Prompts: what is put before a text, by name; and the guess that a model wants prompts which it does not state."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ondol.contract.errors import ModelRefused
from workers.importing.source import SourceFolder

PROMPTS_FILE = "config_sentence_transformers.json"
_QUERY_NAMES = ("query", "question", "search_query")
_DOCUMENT_NAMES = ("document", "passage", "corpus", "search_document")
_PROMPTED_NAME = re.compile(r"(^|[^a-z0-9])(e5|bge|gte-qwen2|nomic-embed)([^a-z0-9]|$)")


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts by name, which of them is the default, and which `input_type` query and document pick."""

    by_name: dict[str, str] = field(default_factory=dict)
    default_name: str | None = None
    query_name: str | None = None
    document_name: str | None = None


def read_prompts(source: SourceFolder) -> Prompts:
    """The prompts that the folder states; none if it has no such file. ModelRefused if they are not texts by name."""
    if not source.has(PROMPTS_FILE):
        return Prompts()
    content = source.read_object(PROMPTS_FILE)
    by_name = _texts(source, content.get("prompts"))
    default = content.get("default_prompt_name")
    if default is not None and default not in by_name:
        raise ModelRefused(f"{PROMPTS_FILE} names the default prompt {default!r}, which is not among its prompts")
    return Prompts(by_name, default, _pick(by_name, _QUERY_NAMES), _pick(by_name, _DOCUMENT_NAMES))


def missing_prompt_warning(source: SourceFolder, config: dict[str, Any], prompts: Prompts) -> str | None:
    """A warning if the model seems to want prompts (by its name or its README) and states none."""
    if any(prompts.by_name.values()):
        return None
    names = (source.folder_name, str(config.get("_name_or_path") or ""))
    seems_prompted = any(_PROMPTED_NAME.search(name.lower()) for name in names)
    if not seems_prompted and source.has("README.md"):
        seems_prompted = "query: " in source.read_text("README.md")
    if not seems_prompted:
        return None
    return (
        "this model seems to want a prompt before every text (such as 'query: ' and 'passage: '), but states none in "
        f"{PROMPTS_FILE}; without them its vectors are worse: add them and import again, or give `prompt` with each job"
    )


def _texts(source: SourceFolder, prompts: object) -> dict[str, str]:
    if prompts is None:
        return {}
    if not isinstance(prompts, dict):
        raise ModelRefused(f"{source.shown(PROMPTS_FILE)}: prompts is not an object of texts by name")
    texts = {name: text for name, text in prompts.items() if text is not None}
    if not all(isinstance(text, str) for text in texts.values()):
        raise ModelRefused(f"{source.shown(PROMPTS_FILE)}: prompts is not an object of texts by name")
    return texts


def _pick(prompts: dict[str, str], names: tuple[str, ...]) -> str | None:
    """The first name with a prompt; sentence-transformers 6 adds empty ones, which only count if there is no other."""
    known = [name for name in names if name in prompts]
    return next((name for name in known if prompts[name]), known[0] if known else None)
