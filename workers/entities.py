"""From the logits of a text's tokens to its entities, as the Hugging Face token-classification pipeline gives them.

Every aggregation is done on arrays; Python objects are made only for what is not ignored.
`K` the texts' own tokens in a window or several, `C` labels, `G` units that are grouped: tokens, or words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from workers.rows import FloatArray, IntArray
from workers.scores import softmax
from workers.token_windows import BoolArray, Window

Strategy = Literal["none", "simple", "first", "average", "max"]
Entity = dict[str, Any]
LongArray = np.ndarray[Any, np.dtype[np.int64]]

WORD_STRATEGIES: frozenset[Strategy] = frozenset({"first", "average", "max"})
"""Strategies under which all tokens of a word get one label."""
_WINDOWS_AT_ONCE = 256
_LAST_OF_PLANE_0 = 0xFFFF


@dataclass(frozen=True, slots=True)
class LabelTable:
    """The model's labels [C]: names, the names of their groups, what begins a group, and what is ignored."""

    names: tuple[str, ...]
    groups: tuple[str, ...]
    tags: IntArray
    """Number [C] of the tag behind `B-` or `I-`; neighbours of one tag make one entity."""
    is_begin: BoolArray
    is_ignored: BoolArray
    is_ignored_group: BoolArray

    @classmethod
    def of(cls, names: Sequence[str], ignored: Sequence[str]) -> LabelTable:
        """The table of a model with these labels."""
        tags = [name[2:] if name.startswith(("B-", "I-")) else name for name in names]
        numbers = {tag: number for number, tag in enumerate(dict.fromkeys(tags))}
        groups = tuple(name.split("-", 1)[-1] for name in names)
        left_out = frozenset(ignored)
        return cls(
            names=tuple(names),
            groups=groups,
            tags=np.array([numbers[tag] for tag in tags], dtype=np.int32),
            is_begin=np.array([name.startswith("B-") for name in names], dtype=bool),
            is_ignored=np.array([name in left_out for name in names], dtype=bool),
            is_ignored_group=np.array([group in left_out for group in groups], dtype=bool),
        )


@dataclass(frozen=True, slots=True)
class LabelledWindow:
    """A window of a text, and what the model answered for its tokens: logits [K, C]."""

    text: str
    window: Window
    logits: FloatArray


@dataclass(frozen=True, slots=True)
class EntityReader:
    """Everything that is the same for all texts of a task. Offsets are in code points."""

    labels: LabelTable
    strategy: Strategy
    tokenizer: Tokenizer
    unknown_id: int | None

    def read(self, windows: Sequence[LabelledWindow]) -> list[list[Entity]]:
        """The entities of each window; many windows are read at once, since most are a few dozen tokens short."""
        found: list[list[Entity]] = []
        for start in range(0, len(windows), _WINDOWS_AT_ONCE):
            found += self._read(windows[start : start + _WINDOWS_AT_ONCE])
        return found

    def merged(self, of_windows: Sequence[list[Entity]]) -> list[Entity]:
        """The entities of a text, from those of its windows."""
        if len(of_windows) == 1:
            return of_windows[0]
        found = [entity for entities in of_windows for entity in entities]
        return merge_tokens(found) if self.strategy == "none" else merge_overlapping(found)

    def _read(self, windows: Sequence[LabelledWindow]) -> list[list[Entity]]:
        lengths = np.array([len(one.window) for one in windows], dtype=np.int64)
        found: list[list[Entity]] = [[] for _ in windows]
        if not lengths.any():
            return found
        scores = softmax(np.concatenate([one.logits for one in windows]))
        starts = np.cumsum(lengths) - lengths
        owners = np.repeat(np.arange(len(windows)), lengths)
        if self.strategy == "none":
            self._read_tokens(windows, scores, starts, owners, found)
        else:
            self._read_groups(windows, scores, starts, owners, found)
        return found

    def _read_tokens(
        self,
        windows: Sequence[LabelledWindow],
        scores: FloatArray,
        starts: LongArray,
        owners: LongArray,
        found: list[list[Entity]],
    ) -> None:
        """One entity a token; `index` counts the tokens of the whole text, special ones included."""
        best = scores.argmax(axis=1)
        for token in np.flatnonzero(~self.labels.is_ignored[best]).tolist():
            one, i = windows[owners[token]], token - int(starts[owners[token]])
            found[owners[token]].append(
                {
                    "entity": self.labels.names[best[token]],
                    "score": float(scores[token, best[token]]),
                    "index": one.window.begin + one.window.first + i,
                    "word": self._word(one, i),
                    "start": int(one.window.offsets[i, 0]),
                    "end": int(one.window.offsets[i, 1]),
                }
            )

    def _read_groups(
        self,
        windows: Sequence[LabelledWindow],
        scores: FloatArray,
        starts: LongArray,
        owners: LongArray,
        found: list[list[Entity]],
    ) -> None:
        """Neighbouring tokens or words of one tag as one entity; none reaches over the edge of a window."""
        is_edge = np.append([True], owners[1:] != owners[:-1])
        first = self._unit_starts(windows, is_edge)
        best, unit_scores = unit_labels(scores, first, self.strategy)
        bounds = np.append(first, len(scores))
        for group_start, group_stop in group_bounds(best, is_edge[first], self.labels):
            owner = int(owners[bounds[group_start]])
            one = windows[owner]
            places = (bounds[group_start : group_stop + 1] - starts[owner]).tolist()
            found[owner].append(
                {
                    "entity_group": self.labels.groups[best[group_start]],
                    "score": float(np.mean(unit_scores[group_start:group_stop])),
                    "word": self._joined([self._unit(one, *edges) for edges in pairwise(places)]),
                    "start": int(one.window.offsets[places[0], 0]),
                    "end": int(one.window.offsets[places[-1] - 1, 1]),
                }
            )

    def _unit_starts(self, windows: Sequence[LabelledWindow], is_edge: BoolArray) -> LongArray:
        """Index [G] of each unit's first token; the first token of a window begins one, whatever it is."""
        if self.strategy not in WORD_STRATEGIES:
            return np.arange(len(is_edge))
        is_subword = np.concatenate([_known_subwords(one.window) for one in windows])
        return np.flatnonzero(is_edge | ~is_subword)

    def _unit(self, one: LabelledWindow, start: int, stop: int) -> str:
        """The text of a token or word: a word's tokens are joined first, as the pipeline does."""
        tokens = [self._word(one, i) for i in range(start, stop)]
        return self._joined(tokens) if self.strategy in WORD_STRATEGIES else tokens[0]

    def _word(self, one: LabelledWindow, i: int) -> str:
        """A token's name in the vocabulary; of an unknown token what stands in the text."""
        token_id = int(one.window.ids[i])
        name = None if token_id == self.unknown_id else self.tokenizer.id_to_token(token_id)
        return one.text[one.window.offsets[i, 0] : one.window.offsets[i, 1]] if name is None else name

    def _joined(self, tokens: list[str]) -> str:
        decoder = self.tokenizer.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(tokens))


def unit_labels(scores: FloatArray, first: LongArray, strategy: Strategy) -> tuple[LongArray, FloatArray]:
    """Best label [G] of each token or word and its score [G], from token scores [K, C]."""
    if strategy == "average":
        counts = np.diff(np.append(first, len(scores))).astype(np.float32)
        of_units = np.asarray(np.add.reduceat(scores, first, axis=0) / counts[:, None], dtype=np.float32)
    elif strategy == "max":
        of_units = scores[_strongest(scores.max(axis=1), first)]
    else:
        of_units = scores[first]
    best = of_units.argmax(axis=1)
    return best, of_units[np.arange(len(first)), best]


def group_bounds(best: LongArray, is_edge: BoolArray, labels: LabelTable) -> list[tuple[int, int]]:
    """First unit and the one after the last, of each group of units [G] that is not ignored.

    `is_edge` [G]: a group ends before this unit, whatever its label.
    """
    tags = labels.tags[best]
    begins = is_edge | labels.is_begin[best]
    begins[1:] |= tags[1:] != tags[:-1]
    starts = np.flatnonzero(begins)
    stops = np.append(starts[1:], len(best))
    is_kept = ~labels.is_ignored_group[best[starts]]
    return list(zip(starts[is_kept].tolist(), stops[is_kept].tolist(), strict=True))


def merge_overlapping(entities: list[Entity]) -> list[Entity]:
    """Of entities that overlap, found in neighbouring windows, the longest, and of equally long ones the surest."""
    if not entities:
        return entities
    in_order = sorted(entities, key=lambda entity: entity["start"])
    merged, previous = [], in_order[0]
    for entity in in_order[1:]:
        if previous["start"] <= entity["start"] < previous["end"]:
            if _rank(entity) > _rank(previous):
                previous = entity
        else:
            merged.append(previous)
            previous = entity
    merged.append(previous)
    return merged


def merge_tokens(entities: list[Entity]) -> list[Entity]:
    """Each token once: of a token that lies in two windows, the surer label."""
    best: dict[int, Entity] = {}
    for entity in entities:
        other = best.get(entity["index"])
        if other is None or entity["score"] > other["score"]:
            best[entity["index"]] = entity
    return [best[index] for index in sorted(best)]


def to_utf16(entities: list[Entity], text: str) -> None:
    """Offsets in place from code points to UTF-16 units, as JavaScript, Java and C# count them."""
    if text.isascii():
        return
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    before = np.concatenate([[0], np.cumsum(points > _LAST_OF_PLANE_0)])
    for entity in entities:
        for edge in ("start", "end"):
            entity[edge] += int(before[entity[edge]])


def _known_subwords(window: Window) -> BoolArray:
    assert window.is_subword is not None, "windows for these strategies know their words"
    return window.is_subword


def _strongest(strength: FloatArray, first: LongArray) -> LongArray:
    """Index [G] of each word's first token of the highest `strength` [K]."""
    of_token = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(strength))))
    is_best = np.flatnonzero(strength == np.maximum.reduceat(strength, first)[of_token])
    return is_best[np.unique(of_token[is_best], return_index=True)[1]]


def _rank(entity: Entity) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]
