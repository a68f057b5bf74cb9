"""What classifying and tagging return: label scores and entities, as typed records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ondol.client.errors import BadAnswer, ItemError, ItemErrors

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label and its score; `predicted` says whether the score reaches the threshold (None: there is no threshold)."""

    label: str
    score: float
    predicted: bool | None = None


@dataclass(frozen=True, slots=True)
class Entity:
    """A tagged piece of a text: `word` stands from `start` to before `end`, in code points unless asked otherwise.

    `index` is the token's place with aggregation_strategy "none", else None.
    """

    label: str
    score: float
    word: str
    start: int
    end: int
    index: int | None = None


@dataclass(frozen=True, slots=True)
class PartialResults(Generic[T]):
    """One result an input, None for the inputs that failed, and why they failed."""

    results: list[T | None]
    errors: Mapping[int, ItemError]


def unwrap(outcome: PartialResults[T], *, is_one: bool) -> Any:
    """All results, or the only one where one input was given alone; ItemErrors if an input failed."""
    if outcome.errors:
        raise ItemErrors(outcome.errors, partial=outcome.results)
    return outcome.results[0] if is_one else outcome.results


def parse_label_scores(raw: Any) -> list[LabelScore]:
    """An input's labels, best first; BadAnswer if they are none."""
    try:
        return [LabelScore(item["label"], item["score"], item.get("predicted")) for item in raw]
    except (KeyError, TypeError, AttributeError) as exc:
        raise BadAnswer(f"these are not label scores: {str(raw)[:120]}") from exc


def parse_entities(raw: Any) -> list[Entity]:
    """An input's entities, in the order of the text; BadAnswer if they are none."""
    try:
        return [_entity(item) for item in raw]
    except (KeyError, TypeError, AttributeError) as exc:
        raise BadAnswer(f"these are not entities: {str(raw)[:120]}") from exc


def _entity(raw: Mapping[str, Any]) -> Entity:
    label = raw["entity_group"] if "entity_group" in raw else raw["entity"]
    return Entity(label, raw["score"], raw["word"], raw["start"], raw["end"], raw.get("index"))
