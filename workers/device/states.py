"""What a forward pass gives, whichever way the rows were laid out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class States:
    """Token states `hidden` [T, H] of all rows end to end, in the model's dtype, and the padding that was computed.

    `pooled` gives the model's own pooler output [B, H]; only models with a pooler have it, and only for the last layer.
    """

    hidden: torch.Tensor
    num_padding: int
    pooled: Callable[[], torch.Tensor] | None = None
