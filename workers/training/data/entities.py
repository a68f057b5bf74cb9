"""From a text with marked entities to words with BIO tags.

Words are runs of characters between spaces; each punctuation mark or symbol is a word of its own; an entity that
begins or ends inside a word splits it there (as Korean particles need). Offsets count code points, ends exclusive.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from workers.training.data.problems import CellProblem, shown
from workers.training.data.table import Number, type_name

OUTSIDE = "O"
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Entity:
    """A labelled part of a text, from `start` to before `end`."""

    start: int
    end: int
    label: str


def parse_entities(cell: list[Any], text: str, column: str) -> list[Entity]:
    """The entities in `cell` in the order of the text; CellProblem if one is no part of it, or two overlap."""
    entities = sorted(
        (_entity(item, f"entities[{i}]", text, column) for i, item in enumerate(cell)), key=lambda e: (e.start, e.end)
    )
    for before, entity in itertools.pairwise(entities):
        if entity.start < before.end:
            message = (
                f"entities overlap: {_named(before, text)} and {_named(entity, text)}; keep one of them, a word can "
                "have one tag"
            )
            raise CellProblem(message, column=column)
    return entities


def tagged_words(text: str, entities: list[Entity]) -> tuple[list[str], list[str], list[Span]]:
    """Words, their tags, and where they stand in `text`."""
    cuts = sorted({offset for entity in entities for offset in (entity.start, entity.end)})
    spans = list(_split(text, cuts))
    tags: list[tuple[Entity | None, bool]] = []
    places = iter([*entities, Entity(len(text) + 1, len(text) + 1, OUTSIDE)])
    entity = next(places)
    for start, _ in spans:
        while start >= entity.end:
            entity = next(places)
        is_first = not tags or tags[-1][0] is not entity
        tags.append((entity if start >= entity.start else None, is_first))
    names = [OUTSIDE if entity is None else f"{'B' if is_first else 'I'}-{entity.label}" for entity, is_first in tags]
    return [text[start:end] for start, end in spans], names, spans


def _split(text: str, cuts: list[int]) -> Iterator[Span]:
    k = 0
    for match in _WORDS.finditer(text.translate(_CLASSES)):
        start, end = match.span()
        while k < len(cuts) and cuts[k] <= start:
            k += 1
        while k < len(cuts) and cuts[k] < end:
            yield start, cuts[k]
            start = cuts[k]
            k += 1
        yield start, end


def _entity(item: Any, name: str, text: str, column: str) -> Entity:
    if not isinstance(item, dict):
        raise CellProblem(f'{name} is {type_name(item)}; write {{"start": 0, "end": 3, "label": "…"}}', column=column)
    start, end = (_offset(item, key, name, column) for key in ("start", "end"))
    label = item.get("label")
    if not isinstance(label, str) or not label.strip():
        raise CellProblem(f"{name} has no label; name its type", column=column)
    if not 0 <= start < end <= len(text):
        message = (
            f"{name} is from {start:,} to {end:,}, but the text has {len(text):,} characters; offsets count code "
            "points from 0, and the end is exclusive"
        )
        raise CellProblem(message, column=column)
    entity = Entity(start, end, label)
    stated = item.get("text")
    if isinstance(stated, str) and stated != text[start:end]:
        message = (
            f"{name} says that its text is {shown(stated)}, but {start:,} to {end:,} is {shown(text[start:end])}; "
            "offsets count code points, not bytes or UTF-16 units"
        )
        raise CellProblem(message, column=column)
    if not text[start:end].strip():
        raise CellProblem(f"{name} holds nothing but spaces; remove it", column=column)
    return entity


def _offset(item: dict[str, Any], key: str, name: str, column: str) -> int:
    value = item.get(key)
    if not isinstance(value, Number) or not re.fullmatch(r"-?\d{1,9}", value, re.ASCII):
        what = "missing" if value is None else type_name(value)
        raise CellProblem(f"{name}.{key} is {what}, not a whole number", column=column)
    return int(value)


def _named(entity: Entity, text: str) -> str:
    return f"{shown(text[entity.start : entity.end])} ({entity.start:,} to {entity.end:,}, {entity.label})"


class _CharClasses(dict[int, str]):
    """What a code point is in words: a space, a mark (punctuation or symbol), or a part of a word. Fills as it is used.

    Marks that combine with a letter, and joiners, are parts of words.
    """

    def __missing__(self, code: int) -> str:
        char = chr(code)
        found = " " if char.isspace() else "m" if unicodedata.category(char)[0] in "PS" else "w"
        self[code] = found
        return found


_CLASSES = _CharClasses()
_WORDS = re.compile("m|w+")
