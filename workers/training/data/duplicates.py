"""Rows that say the same thing twice: in training and validation, or with different labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from workers.training.data.examples import Examples, RowKey

_NUM_NAMED = 3


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of a file at `indices`: those that are trained on, or validated with."""

    rows: Examples
    indices: Sequence[int]

    def place(self, index: int) -> str:
        """Where a row is, in words."""
        return f"row {index + 1:,} of {self.rows.source.filename}"


def duplicate_warnings(train: Part, validation: Part) -> list[str]:
    """Warnings with counts and the first rows."""
    firsts: dict[RowKey, int] = {}
    for index in train.indices:
        firsts.setdefault(train.rows.key(index), index)
    return [*_across(firsts, train, validation), *_conflicts(firsts, train, validation)]


def _across(firsts: dict[RowKey, int], train: Part, validation: Part) -> Iterator[str]:
    pairs = [(firsts[key], index) for index in validation.indices if (key := validation.rows.key(index)) in firsts]
    if pairs:
        named = _several(f"{train.place(first)} = {validation.place(index)}" for first, index in pairs)
        are = "row is" if len(pairs) == 1 else "rows are"
        yield (
            f"{len(pairs):,} validation {are} also in training, which makes the metrics look better than they are: "
            f"{named}"
        )


def _conflicts(firsts: dict[RowKey, int], train: Part, validation: Part) -> Iterator[str]:
    seen: dict[RowKey, tuple[Part, int]] = {key: (train, index) for key, index in firsts.items()}
    named: list[str] = []
    keys: set[RowKey] = set()
    for part in (train, validation):
        for index in part.indices:
            key = part.rows.key(index)
            other, first = seen.setdefault(key, (part, index))
            if key not in keys and part.rows.answer(index) != other.rows.answer(first):
                keys.add(key)
                named.append(f"{other.place(first)} and {part.place(index)}")
    if keys:
        have = "text has" if len(keys) == 1 else "texts have"
        yield f"{len(keys):,} {have} different labels in different rows, of which one must be wrong: {_several(named)}"


def _several(places: Iterable[str]) -> str:
    found = list(places)
    more = f" and {len(found) - _NUM_NAMED:,} more" if len(found) > _NUM_NAMED else ""
    return ", ".join(found[:_NUM_NAMED]) + more
