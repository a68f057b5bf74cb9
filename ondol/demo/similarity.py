"""Sentence similarity: embed pairs as one job, correlate cosine with what people said. N pairs, H hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ondol.client.errors import JobFailed
from ondol.client.sync_client import Ondol
from ondol.client.sync_jobs import Job
from ondol.demo.errors import DemoFailed
from ondol.demo.rank_correlation import spearman
from ondol.demo.texts import SentencePair


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A model of the demo, the prompt it was trained with, and the least that its vectors must correlate."""

    name: str
    prompt_name: str | None
    floors: dict[str, float]

    def options(self) -> dict[str, Any]:
        """The job options that it needs."""
        return {"prompt_name": self.prompt_name} if self.prompt_name else {}


@dataclass(frozen=True, slots=True)
class SimilarityRun:
    """One job and how well its vectors did; `seconds` from the job's start to its end on the server."""

    job_id: str
    model: str
    language: str
    num_texts: int
    num_tokens: int
    seconds: float
    correlation: float

    @property
    def texts_per_s(self) -> float:
        """Throughput in texts a second."""
        return self.num_texts / self.seconds


def run_similarity(client: Ondol, model: DemoModel, language: str, pairs: list[SentencePair]) -> SimilarityRun:
    """Embed all sentences of `pairs` as one job and score it; DemoFailed if the vectors are worse than they can be."""
    texts = [pair.first for pair in pairs] + [pair.second for pair in pairs]
    job = finish(client.jobs.create("embedding", input=texts, model=model.name, options=model.options()))
    vectors = job.vectors()
    cosines = np.sum(vectors[: len(pairs)] * vectors[len(pairs) :], axis=1)  # unit vectors: the product is the cosine
    correlation = spearman(cosines, [pair.score for pair in pairs])
    floor = model.floors.get(language, -1.0)
    if correlation < floor:
        raise DemoFailed(
            f"{model.name} on {language}: Spearman {correlation:.3f} is under {floor}; its vectors are wrong"
        )
    num_tokens = int(job.usage.get("tokens", 0))
    return SimilarityRun(
        job.id, job.model or model.name, language, len(texts), num_tokens, job.run_s or 0.0, correlation
    )


def finish(job: Job) -> Job:
    """The job, succeeded; JobFailed if it ended otherwise, WaitTimedOut if it takes minutes."""
    job.wait(timeout_s=180)
    if job.status != "succeeded":
        raise JobFailed(job)
    return job
