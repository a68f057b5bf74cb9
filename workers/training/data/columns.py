"""Which task the columns of a file are for, and which column plays which part."""

from __future__ import annotations

from ondol.contract.errors import InvalidPayload
from ondol.contract.fine_tune import Columns, FineTuneOptions
from workers.training.data.examples import TEXT_TASK, TOKEN_TASK, Source
from workers.training.data.problems import file_error, listed

CHAT_COLUMN = "messages"

_OWN_PARTS = {TEXT_TASK: ("text_pair", "label"), TOKEN_TASK: ("tokens", "tags", "entities")}
"""Parts that only one task has."""
_NEEDS = (
    "text-classification needs text and label (or OpenAI's messages); token-classification needs tokens and tags, or "
    "text and entities"
)


def task_of(columns: tuple[str, ...], options: FineTuneOptions, source: Source) -> str:
    """The task that the options state, or that the columns show; InvalidPayload if they show none, or both."""
    stated = {part for part, name in _named(options.columns).items() if name is not None}
    task = options.task or _by_names(set(columns), stated, options, source)
    other = TOKEN_TASK if task == TEXT_TASK else TEXT_TASK
    for part in _OWN_PARTS[other]:
        if part in stated:
            raise InvalidPayload(
                f"columns.{part} belongs to {other}, but {task} is trained; leave it out, or change options.task",
                param=f"options.columns.{part}",
            )
    if task == TOKEN_TASK and (options.problem_type or options.label_delimiter):
        param = "options.problem_type" if options.problem_type else "options.label_delimiter"
        message = (
            f"{source.filename} is for token-classification; problem_type and label_delimiter are not: leave both out"
        )
        raise InvalidPayload(message, param=param)
    return task


def text_columns(columns: tuple[str, ...], options: FineTuneOptions, source: Source) -> dict[str, str]:
    """The columns of text, label and, where there is one, text_pair; a chat has one column that holds all."""
    named = _named(options.columns)
    if CHAT_COLUMN in columns and named["text"] is None and "text" not in columns:
        return {"messages": CHAT_COLUMN}
    found = {part: _present(part, named[part], columns, source) for part in ("text", "label")}
    if named["text_pair"] is not None or "text_pair" in columns:
        found["text_pair"] = _present("text_pair", named["text_pair"], columns, source)
    return _all_different(found)


def token_columns(columns: tuple[str, ...], options: FineTuneOptions, source: Source) -> dict[str, str]:
    """The columns of tokens and tags or, where those are not there, of text and entities."""
    named = _named(options.columns)
    has_words = "tokens" in columns and "tags" in columns
    wants_words = named["tokens"] is not None or named["tags"] is not None
    wants_entities = named["entities"] is not None or named["text"] is not None
    if wants_words and wants_entities:
        message = "name the columns of tokens and tags, or those of text and entities, not both"
        raise InvalidPayload(message, param="options.columns")
    if not wants_words and not wants_entities and not has_words and "entities" not in columns:
        raise file_error(
            source, f"lacks columns: {_NEEDS}. It has {listed(list(columns))}; name yours in options.columns"
        )
    is_words = wants_words or (has_words and not wants_entities)
    parts = ("tokens", "tags") if is_words else ("text", "entities")
    return _all_different({part: _present(part, named[part], columns, source) for part in parts})


def _by_names(columns: set[str], stated: set[str], options: FineTuneOptions, source: Source) -> str:
    for task, parts in _OWN_PARTS.items():
        if stated & set(parts):
            return task
    if options.problem_type or options.label_delimiter:
        return TEXT_TASK
    is_text = "label" in columns or CHAT_COLUMN in columns
    is_token = {"tokens", "tags"} <= columns or "entities" in columns
    if is_text and is_token:
        message = f"has the columns of two tasks ({listed(sorted(columns))}); set options.task"
        raise file_error(source, message, param="options.task")
    if not is_text and not is_token:
        advice = f"It has {listed(sorted(columns))}; rename columns, or name yours in options.columns"
        raise file_error(source, f"does not show what to train: {_NEEDS}. {advice}")
    return TEXT_TASK if is_text else TOKEN_TASK


def _present(part: str, named: str | None, columns: tuple[str, ...], source: Source) -> str:
    name = named or part
    if name in columns:
        return name
    have = listed(list(columns), limit=20)
    if named is not None:
        message = f"has no column {name!r}, which options.columns.{part} names; it has {have}"
        raise file_error(source, message, param=f"options.columns.{part}")
    advice = f"rename one to {part!r}, or name it in options.columns.{part}"
    raise file_error(source, f"has no column {name!r}; it has {have}: {advice}")


def _all_different(found: dict[str, str]) -> dict[str, str]:
    if len(set(found.values())) != len(found):
        parts = " and ".join(f"{part} = {name!r}" for part, name in found.items())
        raise InvalidPayload(f"one column cannot play two parts: {parts}", param="options.columns")
    return found


def _named(columns: Columns) -> dict[str, str | None]:
    return {part: getattr(columns, part) for part in Columns.model_fields}
