"""Rows to vectors or logits with a loaded model: forward pass, then pooling and modules, or the task head.

Shapes: `B` rows, `T` tokens of all rows, `H` width of a vector or number of classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ondol.contract.model_spec import PoolingMode
from workers.device.checks import LAST_LAYER, Plan
from workers.device.device_errors import device_errors
from workers.device.engine import OPENVINO, TORCH, FloatArray
from workers.device.host_copies import to_host
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
    engine: str = TORCH


def encode(loaded: LoadedModel, rows: Rows, plan: Plan) -> Encoded:
    """Vectors or logits of `rows`; waits for the device.

    OutOfDeviceMemory, DeviceLost or DeviceError as `device_errors` says.
    """
    with device_errors(f"running {loaded.handle.ref}"), torch.inference_mode():
        if plan.head_task is not None:
            assert loaded.head is not None, "plan_run looks for the head"
            logits = loaded.head.logits(rows)
            return Encoded(to_host(logits.values), logits.num_padding)
        states, engine = _states(loaded, rows, plan)
        if plan.gives_tokens:
            vectors = states.hidden.float()
        else:
            vectors = pool(states, rows, plan.modes)
            if plan.has_modules:
                vectors = loaded.modules(vectors)
        return Encoded(to_host(vectors), states.num_padding, engine)


def encode_singly(loaded: LoadedModel, rows: Rows, plan: Plan) -> FloatArray:
    """Vectors or logits of all rows, each run alone."""
    return np.concatenate([encode(loaded, rows.part(row, row + 1), plan).vectors for row in range(len(rows.lengths))])


def _states(loaded: LoadedModel, rows: Rows, plan: Plan) -> tuple[States, str]:
    """Token states and the engine that made them: torch, unless the model was converted for just such runs."""
    is_plain = plan.layer == LAST_LAYER and rows.type_ids is None and PoolingMode.POOLER not in plan.modes
    if loaded.converted is not None and is_plain:
        return loaded.converted.forward(rows), OPENVINO
    return _forward(loaded, rows, plan.layer), TORCH


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
