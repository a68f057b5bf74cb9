"""Attention in grids of rows of like length, as a GPU without a kernel for packed rows runs it, is that of each row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workers.device.grids import Grids
from workers.device.packed import Segments, _attend_each

pytestmark = pytest.mark.unit

LENGTHS = ([5], [7, 7, 7], [1, 40, 3, 16, 17, 64, 2, 33], [3, 300, 299])


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("window", [None, 1, 9, 400])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("num_groups", [4, 2, 1])
def test_grids_attend_as_each_row_does(lengths: list[int], window: int | None, causal: bool, num_groups: int) -> None:
    generator = torch.Generator().manual_seed(3)
    num_tokens, device = sum(lengths), torch.device("cpu")
    query = torch.randn(1, 4, num_tokens, 8, generator=generator)
    key, value = (torch.randn(1, num_groups, num_tokens, 8, generator=generator) for _ in range(2))
    segments = Segments(np.asarray(lengths, dtype=np.int64), device)
    expected = _attend_each(query, key, value, segments, 0.3, window, causal=causal)
    grids = Grids.of_lengths(segments.lengths, device)
    found = grids.attend(query, key, value, scaling=0.3, window=window, causal=causal)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert grids.attend(query, key, value, scaling=0.3, window=window, causal=causal).equal(found), "masks are kept"


def test_less_than_half_is_padding_but_for_the_shortest_rows() -> None:
    lengths = np.random.default_rng(4).integers(17, 3_000, 500)
    grids = Grids.of_lengths(lengths, torch.device("cpu")).grids
    assert sum(grid.num_rows for grid in grids) == 500
    assert sum(grid.num_rows * grid.width for grid in grids) < 2 * lengths.sum()
