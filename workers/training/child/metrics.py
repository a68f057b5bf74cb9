"""Metrics of an evaluation, from scikit-learn, scipy and seqeval; the names are those of `TASK_METRICS`.

Shapes: `N` rows, `C` labels. A metric that is not defined (no predicted entity, constant scores) is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats
from seqeval import metrics as entities
from sklearn import metrics

FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]
Metrics = dict[str, float]


def row_metrics(problem_type: str, logits: FloatArray, labels: FloatArray) -> Metrics:
    """Metrics of logits [N, C] against label ids [N], label vectors [N, C] or numbers [N]."""
    return _BY_PROBLEM[problem_type](logits, labels)


def tag_metrics(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> Metrics:
    """Entity-level metrics of tag sequences, as seqeval counts them, and the accuracy of single tags."""
    rows = ([list(tags) for tags in expected], [list(tags) for tags in predicted])
    if not any(rows[0]):
        return dict.fromkeys(("f1", "precision", "recall", "accuracy"), 0.0)
    return {
        "f1": float(entities.f1_score(*rows, zero_division=0)),
        "precision": float(entities.precision_score(*rows, zero_division=0)),
        "recall": float(entities.recall_score(*rows, zero_division=0)),
        "accuracy": float(entities.accuracy_score(*rows)),
    }


def _single_label(logits: FloatArray, labels: FloatArray) -> Metrics:
    predicted = logits.argmax(axis=1)
    return {
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "f1_macro": float(metrics.f1_score(labels, predicted, average="macro", zero_division=0)),
        "f1_weighted": float(metrics.f1_score(labels, predicted, average="weighted", zero_division=0)),
    }


def _multi_label(logits: FloatArray, labels: FloatArray) -> Metrics:
    predicted, expected = logits >= 0, labels >= 0.5  # a logit of 0 is a score of 0.5
    scores = {
        f"f1_{average}": float(metrics.f1_score(expected, predicted, average=average, zero_division=0))
        for average in ("macro", "micro", "weighted")
    }
    return scores | {"accuracy": float(metrics.accuracy_score(expected, predicted))}


def _regression(logits: FloatArray, labels: FloatArray) -> Metrics:
    predicted = logits.reshape(-1)
    is_defined = len(labels) > 1 and np.ptp(predicted) > 0 and np.ptp(labels) > 0
    return {
        "spearman": float(stats.spearmanr(predicted, labels).statistic) if is_defined else 0.0,
        "pearson": float(stats.pearsonr(predicted, labels).statistic) if is_defined else 0.0,
        "mse": float(metrics.mean_squared_error(labels, predicted)),
        "mae": float(metrics.mean_absolute_error(labels, predicted)),
    }


_BY_PROBLEM: dict[str, Callable[[FloatArray, FloatArray], Metrics]] = {
    "single_label_classification": _single_label,
    "multi_label_classification": _multi_label,
    "regression": _regression,
}
