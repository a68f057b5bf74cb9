"""Works of made-up token ids for tests of packing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np

from ondol.contract.states import Priority
from workers.rows import BatchKey, DeviceModel, Row, Work

_numbers = itertools.count(1000)


def key_of(model: str = "tiny:1") -> BatchKey:
    """Rows of a model share batches."""
    return BatchKey(DeviceModel(f"{model}:float32", model, "/nowhere", "float32"), "embedding", None, -1)


def work_of(
    lengths: Sequence[int],
    *,
    id: str = "job_1",
    model: str = "tiny:1",
    priority: Priority = Priority.NORMAL,
    age_s: float = 0.0,
    deadline_at: float | None = None,
    is_alone: bool = False,
    token: int | None = None,
    on_done: Callable[[Work], None] | None = None,
) -> Work:
    """A work with one row a length, queued `age_s` seconds ago; its ids are `token`, or else no row is as another."""
    work = Work(
        id=id,
        key=key_of(model),
        priority=priority,
        deadline_at=deadline_at,
        is_alone=is_alone,
        on_done=on_done,
        enqueued_at=time.monotonic() - age_s,
    )
    tokens = [next(_numbers) if token is None else token for _ in lengths]
    work.add_rows([Row(np.full(n, tokens[i], dtype=np.int32), work, i) for i, n in enumerate(lengths)])
    return work
