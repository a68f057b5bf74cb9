"""What a training run learns from: examples with label ids, and the rows as they were read, with labels as strings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from workers.training.plan import TrainReport

TEXT_TASK = "text-classification"
TOKEN_TASK = "token-classification"
SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"

RowKey = str | tuple[str, ...] | bytes


@dataclass(frozen=True, slots=True)
class TextExample:
    """One text, or a pair, with its label.

    `label` is a label id; for multi-label the ascending ids of the labels that hold (not one number a label; may be
    empty); for regression the number.
    """

    text: str
    text_pair: str | None
    label: int | list[int] | float


@dataclass(frozen=True, slots=True)
class TokenExample:
    """The words of one text and a tag id for each.

    Where the data gave a text with entities, `text` and `spans` (code points, end exclusive, one a word) are there too:
    words may then touch each other, as a particle touches its noun.
    """

    tokens: list[str]
    tags: list[int]
    text: str | None = None
    spans: list[tuple[int, int]] | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples in the order of the files, all `TextExample` or all `TokenExample`, and what was found about them."""

    task: str
    problem_type: str | None
    labels: list[str]
    train: list[TextExample] | list[TokenExample]
    validation: list[TextExample] | list[TokenExample]
    report: TrainReport


@dataclass(frozen=True, slots=True)
class Source:
    """A file by the user's name for it, and the option that named it."""

    filename: str
    param: str = "options.train_file"

    @property
    def is_validation(self) -> bool:
        """Whether the file is only evaluated on."""
        return self.param == "options.validation_file"


@dataclass(slots=True)
class TextRows:
    """The rows of a file for text-classification. Row n of the file (from 1) is at n - 1.

    `labels` holds one label a row, or any number for multi-label, and is empty for regression, which has `scores`.
    """

    source: Source
    columns: dict[str, str]
    problem_type: str
    texts: list[str] = field(default_factory=list)
    pairs: list[str] | None = None
    labels: list[tuple[str, ...]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    num_system_messages: int = 0
    """Chat rows with a system message, which is not trained on."""

    @property
    def is_multi_label(self) -> bool:
        """Whether a row may have several labels, or none."""
        return self.problem_type == MULTI_LABEL

    def __len__(self) -> int:
        return len(self.texts)

    def label_sets(self) -> list[tuple[str, ...]]:
        """The labels of each row."""
        return self.labels

    def key(self, index: int) -> RowKey:
        """What makes two rows the same input."""
        return self.texts[index] if self.pairs is None else (self.texts[index], self.pairs[index])

    def answer(self, index: int) -> object:
        """What two rows of the same input should agree on."""
        return self.scores[index] if self.problem_type == REGRESSION else frozenset(self.labels[index])

    def pieces(self, index: int) -> str | tuple[str, ...]:
        """The row as the tokenizer takes it."""
        return self.texts[index] if self.pairs is None else (self.texts[index], self.pairs[index])


@dataclass(slots=True)
class TokenRows:
    """The rows of a file for token-classification. Row n of the file (from 1) is at n - 1."""

    source: Source
    columns: dict[str, str]
    tokens: list[list[str]] = field(default_factory=list)
    tags: list[list[str]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """Only where the rows have entities, as `spans`."""
    spans: list[list[tuple[int, int]]] = field(default_factory=list)

    @property
    def has_entities(self) -> bool:
        """Whether the tags were made from entities."""
        return "entities" in self.columns

    def __len__(self) -> int:
        return len(self.tokens)

    def label_sets(self) -> list[tuple[str, ...]]:
        """The different tags of each row, in the order of code points."""
        return [tuple(sorted(set(tags))) for tags in self.tags]

    def key(self, index: int) -> RowKey:
        """What makes two rows the same input; a digest, as the words themselves would be held twice."""
        return hashlib.blake2b("\0".join(self.tokens[index]).encode(), digest_size=16).digest()

    def answer(self, index: int) -> object:
        """What two rows of the same input should agree on."""
        return tuple(self.tags[index])

    def pieces(self, index: int) -> str | tuple[str, ...]:
        """The row as the tokenizer takes it: the text it came with, else its words with a space between them."""
        return self.texts[index] if self.has_entities else " ".join(self.tokens[index])


Examples = TextRows | TokenRows


@dataclass(slots=True)
class Interner:
    """Gives equal strings as one object: labels and frequent words are kept once."""

    seen: dict[str, str] = field(default_factory=dict)

    def all(self, strings: Iterator[str]) -> list[str]:
        """The strings, equal ones the same object."""
        return [self.seen.setdefault(string, string) for string in strings]
