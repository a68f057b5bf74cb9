"""On a GPU, packed rows have the vectors of Hugging Face's own padded forward there, in every number format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.equal_to_reference.engines import run_rows, vectors
from tests.gpu.on_cuda import ALL_TYPES, DECODERS, Padded, cosines, make_engine, make_model, random_rows, spec_changes
from tests.tiny_models import PADDED_TYPES, make_tiny_model
from tests.tiny_specs import model_handle, model_spec_of, write_spec
from workers.device.engine import FloatArray, LoadRequest
from workers.device.torch_engine import TorchEngine

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

TOLERANCE = 1e-4
"""The promise to users, in float32 and in units of the largest value; rounding stays far below."""
COMPANY_TOLERANCE = 1e-5
"""Float32 rounding of a few layers."""
COSINES = {"bfloat16": 0.999, "float16": 0.9999}
"""Smallest cosine to float32: two layers of wide random weights lose a part in a thousand to bfloat16's 8 bits."""
POOLINGS = ("mean", "cls")


@pytest.fixture(scope="module", params=ALL_TYPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return make_engine()


def _pooled(states: list[FloatArray], pooling: str) -> FloatArray:
    return np.stack([one.mean(axis=0) if pooling == "mean" else one[0] for one in states])


def _assert_close(found: FloatArray, expected: FloatArray, tolerance: float) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1.0, float(np.abs(expected).max())))


def test_float32_states_are_those_of_the_padded_forward(engine: TorchEngine, folder: Path) -> None:
    rows = random_rows(1)
    expected = Padded(folder).states(rows)
    _assert_close(vectors(engine, folder, rows, pooling=("none",)), np.concatenate(expected), TOLERANCE)
    for pooling in POOLINGS:
        _assert_close(vectors(engine, folder, rows, pooling=(pooling,)), _pooled(expected, pooling), TOLERANCE)


def test_a_row_has_one_float32_vector_in_any_company(engine: TorchEngine, folder: Path) -> None:
    rows = random_rows(2)
    together = vectors(engine, folder, rows)
    alone = np.concatenate([vectors(engine, folder, [row]) for row in rows])
    _assert_close(together, alone, COMPANY_TOLERANCE)
    _assert_close(vectors(engine, folder, rows[::-1]), alone[::-1], COMPANY_TOLERANCE)


@pytest.mark.parametrize("dtype", COSINES)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_half_precision_is_as_near_to_float32_as_the_padded_forward(
    engine: TorchEngine, folder: Path, dtype: str, pooling: str
) -> None:
    rows = random_rows(3)
    exact = _pooled(Padded(folder).states(rows), pooling)
    own = cosines(_pooled(Padded(folder, getattr(torch, dtype)).states(rows), pooling), exact)
    found = cosines(vectors(engine, folder, rows, pooling=(pooling,), dtype=dtype), exact)
    # What the format itself costs this architecture is not held against the packing.
    assert 1 - found.min() <= max(1 - COSINES[dtype], 2 * (1 - own.min())), (found.min(), own.min())


@pytest.mark.parametrize("dtype", ["float32", *COSINES])
def test_architectures_are_packed_where_that_is_right(folder: Path, dtype: str) -> None:
    loaded = make_engine().load(LoadRequest(model_handle(folder, dtype), is_pinned=False))
    assert loaded.is_packed == (folder.name not in PADDED_TYPES), loaded.why_padded
    padding = run_rows(make_engine(), folder, [[7, 5, 8], [7, 8]], dtype=dtype).num_padding
    assert padding == (0 if loaded.is_packed else 1)


@pytest.mark.parametrize("dtype", ["float32", *COSINES])
@pytest.mark.parametrize("model_type", ["modernbert", *DECODERS])
def test_windows_and_grouped_heads_hold_in_long_rows(tmp_path: Path, model_type: str, dtype: str) -> None:
    positions = {"max_position_embeddings": 256} | DECODERS.get(model_type, {})
    folder = make_tiny_model(tmp_path / model_type, model_type, layers=4, config=positions)
    write_spec(folder, model_spec_of(folder, max_length=256, **spec_changes(model_type)))
    rows = random_rows(4, num_rows=9, longest=200)
    exact, loaded = Padded(folder).states(rows), make_engine().load(LoadRequest(model_handle(folder, dtype), False))
    assert loaded.is_packed, loaded.why_padded
    found = vectors(make_engine(), folder, rows, pooling=("none",), dtype=dtype)
    if dtype == "float32":
        _assert_close(found, np.concatenate(exact), TOLERANCE)
        return
    own = cosines(np.concatenate(Padded(folder, getattr(torch, dtype)).states(rows)), np.concatenate(exact))
    lost = 1 - cosines(found, np.concatenate(exact))
    assert lost.mean() <= max(1 - COSINES[dtype], 2 * (1 - own.mean())), (lost.mean(), 1 - own.mean())


@pytest.mark.parametrize("dtype", ["float32", *COSINES])
def test_type_ids_of_pairs_reach_the_model(engine: TorchEngine, tmp_path: Path, dtype: str) -> None:
    folder = make_model(tmp_path / f"pairs-{dtype}", "bert")
    rows = random_rows(5)
    types = [[int(i > len(row) // 2) for i in range(len(row))] for row in rows]
    exact = _pooled(Padded(folder).states(rows, types), "mean")
    found = vectors(engine, folder, rows, type_ids=types, dtype=dtype)
    if dtype == "float32":
        _assert_close(found, exact, TOLERANCE)
    assert cosines(found, exact).min() > COSINES.get(dtype, 0.99999)
    assert np.abs(found - vectors(engine, folder, rows, dtype=dtype)).max() > 0.01


@pytest.mark.parametrize("head_dim", [6, 320])
def test_heads_that_the_kernel_does_not_take_go_padded_and_right(tmp_path: Path, head_dim: int) -> None:
    config = {"head_dim": head_dim, "num_attention_heads": 2, "num_key_value_heads": 2}
    folder = make_tiny_model(tmp_path / "odd", "qwen3", config=config)
    write_spec(folder, model_spec_of(folder))
    rows = random_rows(6)
    exact = _pooled(Padded(folder).states(rows), "mean")
    for dtype in ("float32", "bfloat16"):
        assert cosines(vectors(make_engine(), folder, rows, dtype=dtype), exact).min() > 0.999
