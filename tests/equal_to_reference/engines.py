"""An engine in this process, and short ways to ask it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tests.tiny_specs import model_handle
from workers.device.engine import FloatArray, RunRequest, RunResult, RunSpec
from workers.device.torch_engine import TorchEngine


def make_engine(memory_bytes: int = 2**30) -> TorchEngine:
    """An engine on the CPU with an empty pool."""
    return TorchEngine(torch.device("cpu"), memory_bytes=memory_bytes, batch_tokens=1024)


def run_rows(
    engine: TorchEngine,
    folder: Path,
    rows: Sequence[Sequence[int]],
    *,
    pooling: tuple[str, ...] | None = None,
    layer: int = -1,
    dtype: str = "float32",
    skip: Sequence[int] | None = None,
    type_ids: Sequence[Sequence[int]] | None = None,
    task: str = "embedding",
) -> RunResult:
    """One run of rows of token ids."""
    return engine.run(
        RunRequest(
            model=model_handle(folder, dtype),
            spec=RunSpec(task, pooling, layer),
            lengths=tuple(len(row) for row in rows),
            token_ids=np.asarray([token for row in rows for token in row], dtype=np.int32),
            skip=None if skip is None else tuple(skip),
            type_ids=None if type_ids is None else np.asarray([t for row in type_ids for t in row], dtype=np.int32),
        )
    )


def vectors(engine: TorchEngine, folder: Path, rows: Sequence[Sequence[int]], **options: object) -> FloatArray:
    """The vectors of one run."""
    return run_rows(engine, folder, rows, **options).vectors  # type: ignore[arg-type]  # passed on as they came
