"""Attention in grids: the rows of a packed sequence side by side, those of like length together, for devices where one
call for each row would be mostly calling.

The rest of the model stays packed. Shapes: `T` tokens of all rows, `N` heads, `D` width of a head, `b` rows of a grid,
`L` its width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from workers.device.host_copies import to_device
from workers.device.rows import LongArray

_WIDTHS = np.asarray([16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384])
"""Rows between two of these share a grid: less than half of it is padding, but for the shortest rows."""


@dataclass(slots=True)
class Grid:
    """Rows of like length: `tokens` [b · L] says which token stands in each slot, any of its row's in the padding.

    None: each in its own place.
    """

    num_rows: int
    width: int
    tokens: torch.Tensor | None
    is_real: torch.Tensor | None
    """True [b, L] where a slot is no padding; None: all of them are real."""
    device: torch.device
    masks: dict[tuple[int | None, bool], torch.Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None, *, causal: bool) -> torch.Tensor | None:
        """What a token may look at, True, as SDPA takes it; None: everything, or all before it. Made once a pass."""
        key = (window, causal)
        if key not in self.masks:
            self.masks[key] = self._make_mask(window, causal=causal)
        return self.masks[key]

    def _make_mask(self, window: int | None, *, causal: bool) -> torch.Tensor | None:
        # The padding of a row comes after its tokens: one that looks back does not see it.
        real = None if self.is_real is None or causal else self.is_real[:, None, None, :]
        if window is None or self.width <= window:
            return real
        places = torch.arange(self.width, device=self.device)
        distance = places[:, None] - places[None, :]
        near = distance.abs() < window
        if causal:
            near &= distance >= 0
        return near[None, None] if real is None else near & real


@dataclass(slots=True)
class Grids:
    """All rows of a packed sequence in grids; `slots` [T] is where each token stands, grid after grid.

    None: rows of one length in one grid, whose slots are the tokens in their order.
    """

    grids: list[Grid]
    slots: torch.Tensor | None

    @classmethod
    def of_lengths(cls, lengths: LongArray, device: torch.device) -> Grids:
        """The grids of rows of these lengths [B]."""
        if (lengths == lengths[0]).all():
            return cls([Grid(len(lengths), int(lengths[0]), None, None, device)], None)
        starts = np.cumsum(lengths) - lengths
        of_width = np.digitize(lengths, _WIDTHS, right=True)
        slots: LongArray = np.empty(int(lengths.sum()), dtype=np.int64)
        grids, num_before = [], 0
        for kind in np.unique(of_width):
            chosen = np.flatnonzero(of_width == kind)
            width = int(lengths[chosen].max())
            offsets = np.arange(width)
            is_real = offsets < lengths[chosen][:, None]
            tokens = starts[chosen][:, None] + np.where(is_real, offsets, 0)
            slots[tokens[is_real]] = num_before + np.flatnonzero(is_real)
            num_before += is_real.size
            real = None if is_real.all() else to_device(is_real, device)
            grids.append(Grid(len(chosen), width, to_device(tokens.ravel(), device), real, device))
        return cls(grids, to_device(slots, device))

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float | None,
        window: int | None,
        causal: bool,
    ) -> torch.Tensor:
        """Attention [1, T, N, D] of query, key and value [1, N, T, D] within each row; the latter may be grouped."""
        num_heads = query.shape[1]
        parts = []
        for grid in self.grids:
            mask = grid.mask(window, causal=causal)
            attended = functional.scaled_dot_product_attention(
                _in_grid(query, grid, num_heads),
                _in_grid(key, grid, num_heads),
                _in_grid(value, grid, num_heads),
                attn_mask=mask,
                is_causal=causal and mask is None,
                scale=scaling,
            )
            parts.append(attended.transpose(1, 2).flatten(0, 1))
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        return (found if self.slots is None else found.index_select(0, self.slots))[None]


def _in_grid(packed: torch.Tensor, grid: Grid, num_heads: int) -> torch.Tensor:
    """From [1, N, T, D] to [b, N, L, D]; grouped heads are repeated, since not every kernel takes them as they are."""
    by_token = packed[0].transpose(0, 1)
    slots = by_token if grid.tokens is None else by_token.index_select(0, grid.tokens)
    found = slots.reshape(grid.num_rows, grid.width, *slots.shape[1:]).transpose(1, 2)
    num_repeats = num_heads // packed.shape[1]
    return found if num_repeats == 1 else found.repeat_interleave(num_repeats, dim=1)
