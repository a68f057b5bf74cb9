"""On a GPU, logits of classification and token heads are those of Hugging Face's own padded forward there."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from tests.equal_to_reference.engines import vectors
from tests.gpu.on_cuda import DEVICE, Padded, cosines, make_engine, random_rows
from tests.tiny_models import make_tiny_head
from tests.tiny_specs import model_handle, model_spec_of, write_spec
from workers.device.engine import FloatArray
from workers.device.heads import Layout
from workers.device.loading import load_model
from workers.device.torch_engine import TorchEngine

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

Task = Literal["text-classification", "token-classification"]
TASKS: dict[Task, str] = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
TYPES = ("bert", "xlm-roberta", "distilbert", "albert", "modernbert", "deberta-v2")
TOLERANCE = 1e-4
"""The promise to users, in float32 and in units of the largest logit."""
COSINES = {"bfloat16": 0.999, "float16": 0.9999}
"""Smallest cosine of all logits together to float32's."""


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return make_engine()


def _flat(logits: list[FloatArray]) -> FloatArray:
    return np.concatenate([np.atleast_2d(one) for one in logits])


def _assert_close(found: FloatArray, expected: FloatArray) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("dtype", ["float32", *COSINES])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model_type", TYPES)
def test_logits_are_those_of_the_padded_forward(
    engine: TorchEngine, tmp_path: Path, model_type: str, task: Task, dtype: str
) -> None:
    folder = make_tiny_head(tmp_path / f"{model_type}-{task}-{dtype}", model_type, task=task)
    write_spec(folder, model_spec_of(folder))
    rows = random_rows(1)
    exact = _flat(Padded(folder, auto_class=TASKS[task]).logits(rows))
    found = vectors(engine, folder, rows, task=task, dtype=dtype)
    if dtype == "float32":
        _assert_close(found, exact)
        return
    own = _flat(Padded(folder, getattr(torch, dtype), TASKS[task]).logits(rows))
    lost_by_format = 1 - cosines(own.reshape(1, -1), exact.reshape(1, -1))[0]
    lost = 1 - cosines(found.reshape(1, -1), exact.reshape(1, -1))[0]
    assert lost <= max(1 - COSINES[dtype], 2 * lost_by_format), (lost, lost_by_format)


@pytest.mark.parametrize("dtype", ["float32", *COSINES])
def test_a_cross_encoder_reads_both_texts_of_a_pair(engine: TorchEngine, tmp_path: Path, dtype: str) -> None:
    folder = make_tiny_head(tmp_path / f"ranker-{dtype}", "bert", labels=("relevance",), problem_type="regression")
    write_spec(folder, model_spec_of(folder))
    rows = random_rows(2)
    types = [[int(i > len(row) // 2) for i in range(len(row))] for row in rows]
    exact = _flat(Padded(folder, auto_class=TASKS["text-classification"]).logits(rows, types))
    found = vectors(engine, folder, rows, task="text-classification", type_ids=types, dtype=dtype)
    if dtype == "float32":
        _assert_close(found, exact)
    assert cosines(found.T, exact.T)[0] > COSINES.get(dtype, 0.99999)


def test_head_over_the_mean_gets_each_texts_own_states(engine: TorchEngine, tmp_path: Path) -> None:
    folder = make_tiny_head(tmp_path / "mean", "modernbert", config={"classifier_pooling": "mean"})
    write_spec(folder, model_spec_of(folder))
    loaded = load_model(model_handle(folder), model_spec_of(folder), DEVICE)
    assert loaded.head is not None
    assert loaded.head.layout is Layout.OWN_STATES
    rows = random_rows(3)
    exact = _flat(Padded(folder, auto_class=TASKS["text-classification"]).logits(rows))
    _assert_close(vectors(engine, folder, rows, task="text-classification"), exact)
