"""Rows to vectors with a loaded model: forward pass, pooling, modules.

Shapes: `B` rows, `T` tokens of all rows, `H` width of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from workers.device.checks import Plan
from workers.device.device_errors import device_errors
from workers.device.engine import FloatArray
from workers.device.loading import LoadedModel
from workers.device.packed import forward_packed
from workers.device.padded import forward_padded
from workers.device.pooling import pool
from workers.device.rows import Rows
from workers.device.states import States


@dataclass(frozen=True, slots=True)
class Encoded:
    """Float32 `vectors` [B, H] on the host ([T, H] for pooling none), and the padding tokens computed on the way."""

    vectors: FloatArray
    num_padding: int


def encode(loaded: LoadedModel, rows: Rows, plan: Plan) -> Encoded:
    """Vectors of `rows`; waits for the device. OutOfDeviceMemory, DeviceLost or DeviceError as `device_errors` says."""
    with device_errors(f"running {loaded.handle.ref}"), torch.inference_mode():
        states = _forward(loaded, rows, plan.layer)
        if plan.gives_tokens:
            vectors = states.hidden.float()
        else:
            vectors = pool(states, rows, plan.modes)
            if plan.has_modules:
                vectors = loaded.modules(vectors)
        return Encoded(vectors.cpu().numpy(), states.num_padding)


def _forward(loaded: LoadedModel, rows: Rows, layer: int) -> States:
    spec = loaded.spec
    if not loaded.is_packed:
        return forward_padded(loaded.model, rows, layer=layer, pad_token_id=spec.pad_token_id)
    return forward_packed(
        loaded.model,
        rows,
        layer=layer,
        position_offset=spec.position_offset,
        pad_token_id=spec.pad_token_id,
    )
