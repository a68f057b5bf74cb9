"""The demo's texts, read from `demo/data` beside the package's source."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from ondol.demo.errors import DemoFailed

_DATA = Path(__file__).resolve().parents[2] / "demo" / "data"


@dataclass(frozen=True, slots=True)
class SentencePair:
    """Two sentences and how alike people found them, 0 to 5."""

    first: str
    second: str
    score: float


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A question that was asked before, and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A bank customer's question and what it is about."""

    text: str
    label: str


TRAINING_FILE = _DATA / "banking77" / "train.csv"


def read_questions(part: str) -> list[LabelledText]:
    """The questions of `train` or `test`."""
    return [LabelledText(row["text"], row["label"]) for row in _read(f"banking77/{part}.csv")]


def read_pairs(language: str) -> list[SentencePair]:
    """The 375 sentence pairs in `en` or `ko`."""
    rows = _read("sts-en-ko/test.csv")
    return [
        SentencePair(row[f"sentence1_{language}"], row[f"sentence2_{language}"], float(row["score"])) for row in rows
    ]


def read_answers() -> list[StoredAnswer]:
    """The 1,000 Korean questions with their answers."""
    rows = _read("chatbot-ko/dev.csv") + _read("chatbot-ko/test.csv")
    return [StoredAnswer(row["question"], row["answer"]) for row in rows]


def _read(name: str) -> list[dict[str, str]]:
    try:
        with (_DATA / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError as exc:
        raise DemoFailed(f"{_DATA / name} is missing; run the demo from a source checkout (pip install -e .)") from exc
