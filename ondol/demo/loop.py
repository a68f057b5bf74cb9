"""The loop: fine-tune on real questions, publish, classify by the alias seconds later; beside it, two cheap ways.

N test questions, H hidden size, C intents.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ondol.client.errors import JobFailed
from ondol.client.sync_client import Ondol
from ondol.client.sync_jobs import Job
from ondol.demo.errors import DemoFailed
from ondol.demo.texts import LabelledText

NAME, ALIAS = "card-questions", "production"
_FINE_TUNE_LIMIT_S = 1_200.0
_SETTINGS: dict[str, Any] = {"epochs": 6, "learning_rate": 5e-4, "batch_size": 16, "seed": 7, "validation_split": 0.1}


@dataclass(frozen=True, slots=True)
class LoopRun:
    """What came of it. Seconds: `training_s` from the job's start to its end, `first_answer_s` from then on."""

    job_id: str
    model: str
    num_train: int
    num_test: int
    num_labels: int
    training_s: float
    first_answer_s: float
    texts_per_s: float
    accuracy: float
    centroid_accuracy: float
    majority_accuracy: float


def run_loop(client: Ondol, base: str, train_path: str, train: list[LabelledText], test: list[LabelledText]) -> LoopRun:
    """Train on `train_path`, classify `test` by the alias; DemoFailed if the nearest centroid is as good."""
    job = client.fine_tune(train_path, model=base, name=NAME, alias=ALIAS, **_SETTINGS)
    job.wait(timeout_s=_FINE_TUNE_LIMIT_S)
    if job.status != "succeeded":
        raise JobFailed(job)
    begun_at = time.monotonic()
    client.classify(test[0].text, model=f"{NAME}@{ALIAS}")
    first_answer_s = time.monotonic() - begun_at
    begun_at = time.monotonic()
    scores = client.classify([item.text for item in test], model=f"{NAME}@{ALIAS}", top_k=1)
    took_s = time.monotonic() - begun_at
    accuracy = _share(best[0].label == item.label for best, item in zip(scores, test, strict=True))
    centroid = _centroid_accuracy(client, base, train, test)
    if accuracy <= centroid:
        raise DemoFailed(f"the fine-tuned model has accuracy {accuracy:.3f}, the nearest centroid {centroid:.3f}")
    return LoopRun(
        job_id=job.id,
        model=job.result().model or f"{NAME}@{ALIAS}",
        num_train=len(train),
        num_test=len(test),
        num_labels=len({item.label for item in train}),
        training_s=_run_s(job),
        first_answer_s=first_answer_s,
        texts_per_s=len(test) / took_s,
        accuracy=accuracy,
        centroid_accuracy=centroid,
        majority_accuracy=_majority_accuracy(train, test),
    )


def _majority_accuracy(train: Sequence[LabelledText], test: Sequence[LabelledText]) -> float:
    """Of always naming the most frequent intent."""
    [(label, _)] = Counter(item.label for item in train).most_common(1)
    return _share(item.label == label for item in test)


def _centroid_accuracy(client: Ondol, base: str, train: list[LabelledText], test: list[LabelledText]) -> float:
    """Of the intent whose mean vector [C, H] of the base model is nearest, without any training."""
    vectors = client.embed([item.text for item in [*train, *test]], model=base)
    labels = sorted({item.label for item in train})
    of_train = np.array([labels.index(item.label) for item in train])
    centroids = np.stack([vectors[: len(train)][of_train == i].mean(axis=0) for i in range(len(labels))])
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    nearest = np.argmax(vectors[len(train) :] @ centroids.T, axis=1)
    return _share(labels[i] == item.label for i, item in zip(nearest.tolist(), test, strict=True))


def _share(hits: Iterable[bool]) -> float:
    found = list(hits)
    return sum(found) / len(found)


def _run_s(job: Job) -> float:
    return job.run_s or 0.0
