"""What a device process does, without the wire: requests, results, and the protocol of the engine that answers them.

Shapes: `B` rows in the request, `T` the sum of their lengths, `H` the width of a vector. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ondol.contract.errors import OndolError

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
TORCH = "torch"
OPENVINO = "openvino"
"""Engines, as results and records name them."""


@dataclass(frozen=True, slots=True)
class ModelHandle:
    """A model as the worker names it: `key` identifies it in the warm pool, `dtype` is explicit, never `auto`."""

    key: str
    ref: str
    path: Path
    dtype: str


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What to make of the rows; `pooling` None: the model's own pooling and modules.

    `task` is `embedding`, or the task of the version's head, whose logits are then given whatever the rest says.
    """

    task: str
    pooling: tuple[str, ...] | None
    layer: int


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """Load a model and keep it; pinned models are never evicted."""

    model: ModelHandle
    is_pinned: bool


@dataclass(frozen=True, slots=True)
class RunRequest:
    """Rows end to end: int32 `token_ids` [T], maybe `type_ids` [T], `lengths` [B], leading tokens to `skip` [B]."""

    model: ModelHandle
    spec: RunSpec
    lengths: tuple[int, ...]
    token_ids: IntArray
    skip: tuple[int, ...] | None = None
    type_ids: IntArray | None = None


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """Find the dtype and the packing that suit a model on this device; the handle's dtype is ignored."""

    model: ModelHandle


@dataclass(frozen=True, slots=True)
class UnloadRequest:
    """Let a model go, pinned or not; unknown keys are no error."""

    key: str


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Cosines of a dtype's vectors, and of its logits, to those of float32 over the built-in sentences: the lower."""

    mean_cosine: float
    min_cosine: float


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A loaded model: measured bytes, seconds (0.0 if it was there), and who had to go for it."""

    key: str
    size_bytes: int
    load_s: float
    is_packed: bool
    why_padded: str | None
    evicted: tuple[str, ...]
    max_batch_tokens: int | None = None
    """The token budget to cut batches by; None: what the worker was told."""


@dataclass(frozen=True, slots=True)
class Switched:
    """A model has gone over to another engine: its fidelity there by dtype, and the bytes that it now takes in all."""

    engine: str
    fidelity: Mapping[str, Fidelity]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class RunResult:
    """Float32 `vectors` or logits [B, H] ([T, H] for pooling none and token heads); rows in `row_errors` are zeros."""

    key: str
    vectors: FloatArray
    load_s: float
    forward_s: float
    num_padding: int
    num_halvings: int
    max_batch_tokens: int
    evicted: tuple[str, ...] = ()
    row_errors: Mapping[int, OndolError] = field(default_factory=dict)
    engine: str = TORCH
    """What computed these rows."""
    is_packed: bool = True
    """How later rows of the model should come: end to end, or of like length."""
    switched: Switched | None = None
    """In the first result after the model went over to another engine."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The dtype that `auto` stands for on this kind of device, and how each candidate did."""

    device_kind: str
    dtype: str
    fidelity: Mapping[str, Fidelity]
    is_packed: bool


class Engine(Protocol):
    """Answers requests one at a time, on one thread.

    OndolError: this request fails, the engine goes on. DeviceLost: the device is unusable and the process must end.
    """

    def load(self, request: LoadRequest) -> LoadResult:
        """Load the model, or find it loaded."""

    def run(self, request: RunRequest) -> RunResult:
        """Vectors of the rows; loads the model first if it is not there."""

    def probe(self, request: ProbeRequest) -> ProbeResult:
        """Resolve dtype `auto` for the model."""

    def unload(self, request: UnloadRequest) -> None:
        """Let the model go."""
