"""float16 has little room: a row whose values outgrow it fails by itself, and nothing is given that is no number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.equal_to_reference.engines import make_engine, run_rows
from tests.tiny_models import make_tiny_model
from tests.tiny_specs import model_spec_of, write_spec
from workers.device.checks import LAST_LAYER, Plan
from workers.device.rows import Rows
from workers.device.torch_engine import _overflown

pytestmark = pytest.mark.unit


@pytest.fixture
def loud(tmp_path: Path) -> Path:
    """A model whose last layer gives values above 65,504."""
    folder = make_tiny_model(tmp_path / "loud")
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.LayerNorm.weight"] *= 1e5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return write_spec(folder, model_spec_of(folder))


@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_values_that_outgrow_float16_are_errors_of_their_rows(loud: Path, pooling: str) -> None:
    rows = [[7, 8, 9], [10, 11]]
    found = run_rows(make_engine(), loud, rows, dtype="float16", pooling=(pooling,))
    assert set(found.row_errors) == {0, 1}
    assert "ask for dtype bfloat16" in found.row_errors[0].message
    assert not found.vectors.any()
    for dtype in ("bfloat16", "float32"):
        exact = run_rows(make_engine(), loud, rows, dtype=dtype, pooling=(pooling,))
        assert not exact.row_errors
        assert np.isfinite(exact.vectors).all()


def test_only_the_row_with_such_a_value_fails() -> None:
    rows = Rows.of_lists([[1, 2], [3], [4, 5, 6]])
    by_row = np.asarray([[1, 2], [np.inf, 0], [3, 4]], dtype=np.float32)
    assert set(_overflown(by_row, rows, Plan(LAST_LAYER, (), has_modules=False))) == {1}
    np.testing.assert_array_equal(by_row, [[1, 2], [0, 0], [3, 4]])
    by_token = np.ones((6, 2), dtype=np.float32)
    by_token[4] = np.nan
    tokens = Plan(LAST_LAYER, (), has_modules=False, head_task="token-classification")
    assert set(_overflown(by_token, rows, tokens)) == {2}
    assert _overflown(by_token, rows, tokens) == {}
