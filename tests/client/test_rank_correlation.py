"""The demo's rank correlation is Spearman's."""

from __future__ import annotations

import numpy as np
import pytest

from ondol.demo.rank_correlation import average_ranks, spearman

pytestmark = pytest.mark.unit


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    assert average_ranks([10, 30, 10, 20]).tolist() == [1.5, 4.0, 1.5, 3.0]


def test_it_equals_scipy_on_values_with_ties() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(7)
    one, two = generator.integers(0, 12, 200), generator.normal(size=200).round(1)
    assert spearman(one, two) == pytest.approx(stats.spearmanr(one, two).statistic, abs=1e-12)  # same arithmetic


def test_a_constant_side_has_no_correlation() -> None:
    with pytest.raises(ValueError, match="two different values"):
        spearman([1, 1], [1, 2])
