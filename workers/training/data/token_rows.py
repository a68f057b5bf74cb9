"""Reads the rows of token-classification: words with tags, or a text with entities that become BIO tags."""

from __future__ import annotations

from typing import Any

from ondol.contract.fine_tune import FineTuneOptions
from workers.training.data.columns import token_columns
from workers.training.data.entities import parse_entities, tagged_words
from workers.training.data.examples import Interner, Source, TokenRows
from workers.training.data.label_cells import MAX_LABEL_CHARS
from workers.training.data.problems import CellProblem, Problems
from workers.training.data.table import MAX_CELL_CHARS, Row, Table, list_cell, scalar, type_name
from workers.training.data.text_rows import checked_text


def read_token_rows(table: Table, options: FineTuneOptions, source: Source, problems: Problems) -> TokenRows:
    """All rows of `table`; broken ones are added to `problems`."""
    columns = token_columns(table.columns, options, source)
    rows = TokenRows(source, columns)
    words = Interner()
    append = _append_entities if rows.has_entities else _append_tagged
    for row in table.rows(list(columns.values())):
        try:
            append(rows, row, words)
        except CellProblem as exc:
            problems.add(row.number, row.line, exc)
    return rows


def _append_tagged(rows: TokenRows, row: Row, words: Interner) -> None:
    tokens = _strings(row, rows.columns["tokens"])
    tags = _strings(row, rows.columns["tags"])
    if len(tokens) != len(tags):
        message = f"{len(tags):,} tags for {len(tokens):,} tokens; give each token one tag"
        raise CellProblem(message, column=rows.columns["tags"])
    _check_tokens(tokens, rows.columns["tokens"])
    for i, tag in enumerate(tags):
        _check_tag(tag, i, rows.columns["tags"])
    rows.tokens.append(words.all(iter(tokens)))
    rows.tags.append(words.all(iter(tags)))


def _append_entities(rows: TokenRows, row: Row, words: Interner) -> None:
    text = checked_text(scalar(row, rows.columns["text"]), rows.columns["text"])
    column = rows.columns["entities"]
    entities = parse_entities(list_cell(row, column), text, column)
    for i, entity in enumerate(entities):
        _check_tag(entity.label, i, column)
    tokens, tags, spans = tagged_words(text, entities)
    rows.tokens.append(words.all(iter(tokens)))
    rows.tags.append(words.all(iter(tags)))
    rows.texts.append(text)
    rows.spans.append(spans)


def _strings(row: Row, column: str) -> list[str]:
    return [_string(item, i, column) for i, item in enumerate(list_cell(row, column))]


def _string(item: Any, place: int, column: str) -> str:
    if isinstance(item, str):
        return item
    what = "null" if item is None else type_name(item)
    raise CellProblem(f"item {place} (from 0) is {what}, not a string", column=column)


def _check_tokens(tokens: list[str], column: str) -> None:
    if not tokens:
        raise CellProblem("is an empty list; delete the row", column=column)
    empty = next((i for i, token in enumerate(tokens) if not token), None)
    if empty is not None:
        raise CellProblem(f"token {empty} (from 0) is empty; remove it and its tag", column=column)
    if sum(map(len, tokens)) > MAX_CELL_CHARS:
        raise CellProblem(f"has more than {MAX_CELL_CHARS:,} characters; split the row", column=column)


def _check_tag(tag: str, place: int, column: str) -> None:
    if not tag.strip() or len(tag) > MAX_LABEL_CHARS:
        message = f"label {place} (from 0) is empty or longer than {MAX_LABEL_CHARS} characters; name it shortly"
        raise CellProblem(message, column=column)
