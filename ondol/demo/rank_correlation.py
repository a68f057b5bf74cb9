"""Spearman's rank correlation, with ties given their average rank. N values a side."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """The correlation of the ranks, −1 to 1; ValueError unless both sides have the same N and more than one value."""
    one, two = average_ranks(first), average_ranks(second)
    if one.shape != two.shape or len(np.unique(one)) < 2 or len(np.unique(two)) < 2:
        raise ValueError("rank correlation needs two sides of equal length with at least two different values each")
    return float(np.corrcoef(one, two)[0, 1])


def average_ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Float64 ranks [N] from 1; equal values share the mean of the ranks they take up."""
    _, group, group_sizes = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    last_ranks = np.cumsum(group_sizes)
    ranks: NDArray[np.float64] = (last_ranks - (group_sizes - 1) / 2)[group]
    return ranks
