"""Job kinds, and which of them this build runs."""

from __future__ import annotations

from enum import StrEnum


class JobKind(StrEnum):
    """What a job does."""

    EMBEDDING = "embedding"
    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"
    QUESTION_ANSWERING = "question-answering"
    ZERO_SHOT_CLASSIFICATION = "zero-shot-classification"
    TEXT_RANKING = "text-ranking"
    SENTENCE_SIMILARITY = "sentence-similarity"
    FILL_MASK = "fill-mask"
    EVALUATION = "evaluation"
    IMPORT = "import"
    FINE_TUNE = "fine-tune"


INFERENCE_KINDS = frozenset({JobKind.EMBEDDING, JobKind.TEXT_CLASSIFICATION, JobKind.TOKEN_CLASSIFICATION})
"""Kinds whose inputs become rows of a batch; these also run as calls."""

SUPPORTED_KINDS = INFERENCE_KINDS | {JobKind.IMPORT, JobKind.FINE_TUNE}
"""Kinds with a worker behind them; submitting another one is refused by name, not queued for ever."""
