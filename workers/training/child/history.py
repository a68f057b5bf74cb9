"""What the evaluations so far say: which step is best, and whether it is time to stop.

Read from the Trainer's log alone, so that a resumed run decides as the uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ondol.contract.fine_tune import LOWER_IS_BETTER, EarlyStopping

_PREFIX = "eval_"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics on the validation rows after `step` steps."""

    step: int
    metrics: dict[str, float]


def evaluations_in(log_history: Iterable[Mapping[str, Any]]) -> list[Evaluation]:
    """The evaluations in a Trainer's log, in order."""
    found = []
    for entry in log_history:
        metrics = {key.removeprefix(_PREFIX): value for key, value in entry.items() if key.startswith(_PREFIX)}
        if metrics:
            found.append(Evaluation(int(entry["step"]), metrics))
    return found


def logged(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under the names by which the Trainer's log knows them."""
    return {f"{_PREFIX}{name}": value for name, value in metrics.items()}


def best_of(evaluations: Iterable[Evaluation], metric: str) -> Evaluation | None:
    """The evaluation with the best `metric`, the earlier of equal ones; None without any."""
    best = None
    for evaluation in evaluations:
        if best is None or _gain(evaluation, best, metric) > 0:
            best = evaluation
    return best


def is_exhausted(evaluations: Iterable[Evaluation], metric: str, early: EarlyStopping | None) -> bool:
    """Whether the metric has not risen by more than the threshold in `patience` evaluations."""
    if early is None:
        return False
    best, num_without_gain = None, 0
    for evaluation in evaluations:
        if best is None or _gain(evaluation, best, metric) > early.threshold:
            num_without_gain = 0
        else:
            num_without_gain += 1
        if best is None or _gain(evaluation, best, metric) > 0:
            best = evaluation
    return num_without_gain >= early.patience


def _gain(later: Evaluation, earlier: Evaluation, metric: str) -> float:
    difference = later.metrics[metric] - earlier.metrics[metric]
    return -difference if metric in LOWER_IS_BETTER else difference
