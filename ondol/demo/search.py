"""Nearest-question search: answer a new question with the answer of the stored question closest to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ondol.client.sync_client import Ondol
from ondol.demo.similarity import DemoModel, finish
from ondol.demo.texts import StoredAnswer

NEW_QUESTIONS = (
    "요즘 밤에 잠이 안 와서 힘들어",
    "여자친구랑 헤어져서 너무 슬프다",
    "다이어트 어떻게 해?",
    "회사 그만두고 싶어요",
    "좋아하는 사람한테 어떻게 고백하지?",
)


@dataclass(frozen=True, slots=True)
class Match:
    """A new question, the stored one nearest to it, its answer, and their cosine."""

    question: str
    nearest: str
    answer: str
    score: float


def search(client: Ondol, model: DemoModel, stored: list[StoredAnswer]) -> list[Match]:
    """The best match for each new question; the stored questions go as a job, the new ones as a call."""
    questions = [item.question for item in stored]
    job = finish(client.jobs.create("embedding", input=questions, model=model.name, options=model.options()))
    known = job.vectors()
    asked = client.embed(list(NEW_QUESTIONS), model=model.name, **model.options())
    cosines = asked @ known.T
    best = np.argmax(cosines, axis=1)
    return [
        Match(question, stored[index].question, stored[index].answer, float(cosines[row, index]))
        for row, (question, index) in enumerate(zip(NEW_QUESTIONS, best.tolist(), strict=True))
    ]
