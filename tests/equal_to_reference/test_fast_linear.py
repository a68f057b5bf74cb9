"""Packed linear layers give the states of the model's own, or the model keeps its own."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel

from tests.equal_to_reference.engines import make_engine, vectors
from tests.tiny_models import MODEL_TYPES, make_tiny_model
from tests.tiny_specs import model_handle, model_spec_of, write_spec
from workers.device import fast_linear
from workers.device.engine import LoadRequest
from workers.device.fast_linear import PackedLinear, use_fast_linear

pytestmark = pytest.mark.unit

ROWS = [[2, 9, 8, 7, 3], [2, 5, 3], list(range(5, 45))]


@pytest.fixture(autouse=True)
def always_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where packed layers are faster."""
    monkeypatch.setattr(fast_linear, "_is_faster", lambda _dtype: True)


@pytest.fixture(scope="module", params=MODEL_TYPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)
    return write_spec(folder, model_spec_of(folder))


def test_states_are_those_of_transformers(folder: Path) -> None:
    found = vectors(make_engine(), folder, ROWS, pooling=("none",))
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = torch.cat([model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in ROWS])
    assert float((torch.as_tensor(found) - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))


def _bert(tmp_path: Path, dtype: torch.dtype) -> nn.Module:
    folder = make_tiny_model(tmp_path / "bert")
    model: nn.Module = AutoModel.from_pretrained(folder, dtype=dtype).eval()
    return model


def _states(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        states: torch.Tensor = model(input_ids=torch.tensor([ROWS[2]])).last_hidden_state[0]
        return states


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_are_replaced_and_gelu_is_part_of_them(tmp_path: Path, dtype: torch.dtype) -> None:
    model = _bert(tmp_path, dtype)
    before = _states(model)
    assert use_fast_linear(model, lambda: _states(model))
    assert not [module for module in model.get_submodule("encoder").modules() if type(module) is nn.Linear]
    intermediate = model.get_submodule("encoder.layer.0.intermediate")
    assert isinstance(intermediate.dense, PackedLinear)
    assert isinstance(intermediate.intermediate_act_fn, nn.Identity)
    cosine = torch.nn.functional.cosine_similarity(_states(model).float(), before.float(), dim=-1)
    assert float(cosine.min()) > (0.999999 if dtype == torch.float32 else 0.9995)


def test_wrong_layers_are_taken_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _bert(tmp_path, torch.float32)
    before = _states(model)
    monkeypatch.setattr(
        PackedLinear, "forward", lambda self, inputs: inputs.new_ones((*inputs.shape[:-1], self.out_features))
    )
    assert not use_fast_linear(model, lambda: _states(model))
    assert torch.equal(_states(model), before)
    assert not [module for module in model.modules() if isinstance(module, PackedLinear)]


def test_a_model_that_reads_its_weights_keeps_its_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_tiny_model(tmp_path / "bert")
    write_spec(folder, model_spec_of(folder))
    expected = vectors(make_engine(), folder, ROWS)
    replaced: list[PackedLinear] = []

    def read_weight(self: PackedLinear, inputs: torch.Tensor) -> torch.Tensor:
        replaced.append(self)
        return inputs @ self.weight.T  # type: ignore[operator]  # what such a model's code does

    monkeypatch.setattr(PackedLinear, "forward", read_weight)
    assert (vectors(make_engine(), folder, ROWS) == expected).all()
    assert replaced, "packed layers were tried"


def test_a_pooler_keeps_its_own_layer(tmp_path: Path) -> None:
    model = _bert(tmp_path, torch.float32)
    assert use_fast_linear(model, lambda: _states(model))
    assert type(model.get_submodule("pooler.dense")) is nn.Linear


def test_weights_that_were_packed_are_let_go(tmp_path: Path) -> None:
    model = _bert(tmp_path, torch.float32)
    weight = weakref.ref(model.get_submodule("encoder.layer.0.intermediate.dense").weight)
    assert use_fast_linear(model, lambda: _states(model))
    gc.collect()
    assert weight() is None


def test_size_counts_the_weights_that_were_packed(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "bert")
    write_spec(folder, model_spec_of(folder))
    loaded = make_engine().load(LoadRequest(model_handle(folder), is_pinned=False))
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    assert loaded.size_bytes >= sum(parameter.nbytes for parameter in model.parameters())
