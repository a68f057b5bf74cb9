"""Rows to vectors or logits with a loaded model: forward pass, then pooling and modules, or the task head.

Shapes: `B` rows, `T` tokens of all rows, `H` width of a vector or number of classes.
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
    """Float32 `vectors` or logits [B, H] on the host, and the padding tokens computed on the way.

    One a token, [T, H], for pooling none and for token heads.
    """

    vectors: FloatArray
    num_padding: int


def encode(loaded: LoadedModel, rows: Rows, plan: Plan) -> Encoded:
    """Vectors or logits of `rows`; waits for the device.

    OutOfDeviceMemory, DeviceLost or DeviceError as `device_errors` says.
    """
    with device_errors(f"running {loaded.handle.ref}"), torch.inference_mode():
        if plan.head_task is not None:
            assert loaded.head is not None, "plan_run looks for the head"
            logits = loaded.head.logits(rows)
            return Encoded(logits.values.cpu().numpy(), logits.num_padding)
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
