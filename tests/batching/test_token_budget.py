"""The token budget: measured where nobody has set it, kept for models of that shape, and taken over by the batcher."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ondol.contract.errors import OutOfDeviceMemory
from tests.tiny_models import make_tiny_model
from tests.tiny_specs import model_handle, model_spec_of, write_spec
from workers.batcher import Batcher
from workers.device import warming
from workers.device.budget import CPU_BUDGETS, Measured, choose, made_up_rows, measure_budget
from workers.device.engine import LoadRequest, UnloadRequest
from workers.device.rows import Rows
from workers.device.torch_engine import TorchEngine
from workers.rows import DeviceModel
from workers.warm_models import WarmModels

pytestmark = pytest.mark.unit


class _Device:
    """Takes `seconds[n]` for a pass of n tokens on a clock of its own, and has room for `room` tokens."""

    def __init__(self, seconds: dict[int, float], room: int = 10**9) -> None:
        self.now = 0.0
        self.tried: list[int] = []
        self._seconds = seconds
        self._room = room

    def run(self, rows: Rows) -> None:
        num_tokens = len(rows.token_ids)
        self.tried.append(num_tokens)
        if num_tokens > self._room:
            raise OutOfDeviceMemory("full")
        self.now += self._seconds[num_tokens]

    def clock(self) -> float:
        return self.now

    def measure(self) -> Measured:
        return measure_budget(list(self._seconds), _rows, self.run, clock=self.clock, limit_s=1e9)


def _rows(num_tokens: int) -> Rows:
    return Rows.of_lists([[1] * num_tokens])


def test_fastest_budget_is_chosen_and_a_smaller_one_that_is_nearly_as_fast() -> None:
    found = _Device({256: 0.26, 512: 0.50, 1024: 0.995, 2048: 2.5}).measure()
    assert found.max_batch_tokens == 512
    assert found.tokens_per_s == pytest.approx(512 / 0.5, rel=0.01)
    assert choose({256: 1.0, 512: 1.1, 1024: 2.4}).max_batch_tokens == 512


def test_what_a_batch_costs_elsewhere_counts_against_small_ones() -> None:
    assert choose({256: 0.010, 512: 0.020, 1024: 0.040}).max_batch_tokens == 512


def test_budgets_without_room_are_left_out() -> None:
    device = _Device({256: 0.2, 512: 0.3, 1024: 0.4}, room=600)
    assert device.measure().max_batch_tokens == 512
    assert device.tried == [256, 512, 1024, 256, 512, 256, 512]
    with pytest.raises(OutOfDeviceMemory):
        _Device({256: 0.2, 512: 0.3}, room=100).measure()


def test_slow_model_is_measured_with_the_smallest_budget_alone() -> None:
    device = _Device({budget: budget / 100 for budget in CPU_BUDGETS})
    found = measure_budget(CPU_BUDGETS, _rows, device.run, clock=device.clock, limit_s=0.0)
    assert (found.max_batch_tokens, device.tried) == (256, [256])


@pytest.mark.parametrize("is_packed", [True, False])
def test_made_up_rows_fill_the_budget_and_suit_the_model(tiny: Path, is_packed: bool) -> None:
    spec = model_spec_of(tiny)
    rows = made_up_rows(1024, spec, 400, is_packed=is_packed)
    assert int(rows.lengths.sum()) == len(rows.token_ids) == 1024
    assert rows.lengths.max() <= spec.max_length
    assert rows.token_ids.min() >= 0 and rows.token_ids.max() < 400
    assert not (rows.token_ids == spec.pad_token_id).any()
    assert len(np.unique(rows.lengths[:-1])) > 1 if is_packed else len(np.unique(rows.lengths[:-1])) == 1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    return write_spec(folder, model_spec_of(folder))


def test_engine_measures_once_for_models_of_one_shape(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()
    monkeypatch.setattr(
        warming, "measure_budget", lambda *args, **kwargs: (next(calls), measure_budget(*args, **kwargs))[1]
    )
    engine = TorchEngine(torch.device("cpu"), memory_bytes=2**30, batch_tokens=1024, measures_budget=True)
    handle = model_handle(tiny)
    first = engine.load(LoadRequest(handle, is_pinned=False))
    engine.unload(UnloadRequest(handle.key))
    second = engine.load(LoadRequest(handle, is_pinned=False))
    new_version = engine.load(LoadRequest(replace(handle, key="another:float32"), is_pinned=False))
    assert first.max_batch_tokens == second.max_batch_tokens == new_version.max_batch_tokens
    assert first.max_batch_tokens in CPU_BUDGETS
    assert next(calls) == 1


def test_budget_that_was_set_is_kept(tiny: Path) -> None:
    engine = TorchEngine(torch.device("cpu"), memory_bytes=2**30, batch_tokens=777)
    assert engine.load(LoadRequest(model_handle(tiny), is_pinned=False)).max_batch_tokens == 777


def test_batcher_takes_over_what_replies_say() -> None:
    told: list[tuple[str, object]] = []

    class Listening(Batcher):
        def set_packed(self, model_key: str, *, is_packed: bool) -> None:
            told.append((model_key, is_packed))
            super().set_packed(model_key, is_packed=is_packed)

        def set_budget(self, model_key: str, max_batch_tokens: int) -> None:
            told.append((model_key, max_batch_tokens))
            super().set_budget(model_key, max_batch_tokens)

    switched: list[str] = []
    warm = WarmModels(
        Listening(max_batch_tokens=1024), on_change=lambda: None, on_switched=lambda key, _header: switched.append(key)
    )
    model = DeviceModel("d:float32", "m:1", "/nowhere", "float32")
    warm.loaded({"is_packed": True, "size_bytes": 5, "max_batch_tokens": 2048}, model)
    same = {"key": model.key, "max_batch_tokens": 2048, "is_packed": True}
    warm.ran(same)
    warm.ran(same)
    assert told == [(model.key, True), (model.key, 2048)]
    warm.ran({**same, "max_batch_tokens": 512, "is_packed": False, "switched": {"engine": "openvino", "size_bytes": 9}})
    assert told[2:] == [(model.key, False), (model.key, 512)]
    assert (switched, warm.used_bytes()) == ([model.key], 9)
