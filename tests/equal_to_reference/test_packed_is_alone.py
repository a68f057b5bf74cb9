"""A row's vector is the same in any company: packed where the architecture allows it, padded where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from ondol.contract.errors import DeviceLost, InvalidPayload, ModelCannot, OutOfDeviceMemory
from ondol.contract.model_spec import PoolingMode
from tests.equal_to_reference.engines import make_engine, run_rows, vectors
from tests.tiny_models import MODEL_TYPES, PADDED_TYPES, make_tiny_model
from tests.tiny_specs import model_handle, model_spec_of, write_spec
from workers.device import packed, probing, torch_engine
from workers.device.checks import Plan
from workers.device.encoding import Encoded, encode
from workers.device.engine import FloatArray, LoadRequest
from workers.device.loading import LoadedModel
from workers.device.packed import forward_packed
from workers.device.rows import Rows
from workers.device.states import States

pytestmark = pytest.mark.unit

TOLERANCE = 1e-5
"""Float32 rounding of a few layers, in units of the largest value."""
LOW_COSINE = 0.999
POOLERS = frozenset({"bert", "roberta", "xlm-roberta", "albert", "mpnet"})
POOLINGS = tuple(mode.value for mode in PoolingMode if mode is not PoolingMode.POOLER)


@pytest.fixture(scope="module", params=MODEL_TYPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)
    return write_spec(folder, model_spec_of(folder))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "bert")
    return write_spec(folder, model_spec_of(folder))


def _rows(seed: int, num_rows: int = 12, longest: int = 64) -> list[list[int]]:
    """Random rows of 1 to `longest` tokens, the padding token among them."""
    generator = np.random.default_rng(seed)
    lengths = [1, 2, longest, *generator.integers(1, longest, num_rows - 3)]
    return [generator.integers(0, 400, length).tolist() for length in lengths]


def _assert_close(found: FloatArray, expected: FloatArray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_row_has_one_vector_in_any_company(folder: Path, pooling: str) -> None:
    engine, rows = make_engine(), _rows(1)
    together = vectors(engine, folder, rows, pooling=(pooling,))
    backwards = vectors(engine, folder, rows[::-1], pooling=(pooling,))
    alone = [vectors(engine, folder, [row], pooling=(pooling,)) for row in rows]
    _assert_close(together, np.concatenate(alone))
    _assert_close(backwards, np.concatenate(alone[::-1]))


def test_architecture_is_packed_where_that_is_right(folder: Path) -> None:
    loaded = make_engine().load(LoadRequest(model_handle(folder), is_pinned=False))
    assert loaded.is_packed == (folder.name not in PADDED_TYPES)
    assert (loaded.why_padded is None) == loaded.is_packed
    padding = run_rows(make_engine(), folder, [[2, 5, 3], [2, 3]]).num_padding
    assert padding == (0 if loaded.is_packed else 1)


@pytest.mark.parametrize("layer", [-3, -2, -1, 0, 1, 2])
def test_layers_are_those_of_transformers(folder: Path, layer: int) -> None:
    rows = _rows(2, num_rows=5)
    found = vectors(make_engine(), folder, rows, pooling=("none",), layer=layer)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        outputs = [model(input_ids=torch.tensor([row]), output_hidden_states=True) for row in rows]
    expected = [output.last_hidden_state if layer in (-1, 2) else output.hidden_states[layer] for output in outputs]
    _assert_close(found, torch.cat([states[0] for states in expected]).numpy())


def test_pooler_is_the_models_own(folder: Path) -> None:
    rows = _rows(3, num_rows=5)
    engine = make_engine()
    if folder.name not in POOLERS:
        with pytest.raises(ModelCannot) as caught:
            vectors(engine, folder, rows, pooling=("pooler",))
        assert caught.value.code == "model_has_no_pooler"
        return
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = torch.cat([model(input_ids=torch.tensor([row])).pooler_output for row in rows]).numpy()
    _assert_close(vectors(engine, folder, rows, pooling=("pooler",)), expected)


def test_type_ids_reach_the_model(folder: Path) -> None:
    rows = _rows(4, num_rows=5)
    types = [[i % 2 for i in range(len(row))] for row in rows]
    engine = make_engine()
    if model_spec_of(folder).type_vocab_size < 2:
        with pytest.raises(InvalidPayload):
            vectors(engine, folder, rows, type_ids=types)
        return
    together = vectors(engine, folder, rows, type_ids=types)
    alone = [vectors(engine, folder, [row], type_ids=[t]) for row, t in zip(rows, types, strict=True)]
    _assert_close(together, np.concatenate(alone))
    assert np.abs(together - vectors(engine, folder, rows)).max() > 100 * TOLERANCE


def test_bfloat16_rows_agree_by_cosine(folder: Path) -> None:
    engine, rows = make_engine(), _rows(5)
    together = vectors(engine, folder, rows, dtype="bfloat16")
    alone = np.concatenate([vectors(engine, folder, [row], dtype="bfloat16") for row in rows])
    cosines = (together * alone).sum(1) / np.linalg.norm(together, axis=1) / np.linalg.norm(alone, axis=1)
    assert cosines.min() > LOW_COSINE


def test_sliding_windows_stay_inside_a_text(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "modernbert", "modernbert", layers=4)
    write_spec(folder, model_spec_of(folder, max_length=256))
    rows = _rows(6, num_rows=8, longest=200)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = torch.cat([model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in rows]).numpy()
    _assert_close(vectors(make_engine(), folder, rows, pooling=("none",)), expected)


def test_wrong_position_offset_is_noticed(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "roberta", "roberta")
    write_spec(folder, model_spec_of(folder, position_offset=0))
    loaded = make_engine().load(LoadRequest(model_handle(folder), is_pinned=False))
    assert not loaded.is_packed
    assert loaded.why_padded is not None
    assert "differ" in loaded.why_padded


def test_attention_across_texts_is_noticed(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attend_across(
        module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, None]:
        del module
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        return attended.transpose(1, 2), None

    # Every load registers anew, so the next one has the real attention again.
    monkeypatch.setattr(packed, "packed_attention", attend_across)
    rows = [[2, 9, 8, 7, 3], [2, 5, 3]]
    engine = make_engine()
    loaded = engine.load(LoadRequest(model_handle(bert), is_pinned=False))
    assert loaded.why_padded is not None
    assert "differ" in loaded.why_padded
    padded = vectors(engine, bert, rows)
    monkeypatch.undo()
    _assert_close(padded, vectors(make_engine(), bert, rows))


def test_skipped_tokens_count_for_nothing(bert: Path) -> None:
    engine, rows = make_engine(), [[2, 9, 8, 7, 3], [2, 5, 3]]
    states = vectors(engine, bert, rows, pooling=("none",))
    kept = [states[2:5], states[6:8]]
    skip = [2, 1]
    _assert_close(
        vectors(engine, bert, rows, pooling=("mean",), skip=skip), np.stack([part.mean(axis=0) for part in kept])
    )
    _assert_close(
        vectors(engine, bert, rows, pooling=("max",), skip=skip), np.stack([part.max(axis=0) for part in kept])
    )
    _assert_close(vectors(engine, bert, rows, pooling=("cls",), skip=skip), np.stack([part[0] for part in kept]))
    nothing = vectors(engine, bert, rows, pooling=("mean", "max", "last"), skip=[5, 0])
    assert not nothing[0].any()
    assert nothing[1].any()


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ([[2, 400]], {}),
        ([[2, -1]], {}),
        ([[2] * 65], {}),
        ([[2, 3]], {"layer": 3}),
        ([[2, 3]], {"layer": -4}),
        ([[2, 3]], {"pooling": ("median",)}),
        ([[2, 3]], {"pooling": ()}),
        ([[2, 3]], {"pooling": ("none", "mean")}),
        ([[2, 3]], {"pooling": ("pooler",), "layer": 0}),
        ([[2, 3]], {"type_ids": [[0, 2]]}),
        ([[2, 3]], {"dtype": "float64"}),
    ],
)
def test_what_the_model_has_no_vector_for_is_refused(
    bert: Path, rows: list[list[int]], options: dict[str, object]
) -> None:
    with pytest.raises(InvalidPayload):
        vectors(make_engine(), bert, rows, **options)


def test_packed_rows_that_are_no_numbers_in_the_low_precision_are_not_taken_for_right(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow_if_low(model: torch.nn.Module, rows: Rows, **how: Any) -> States:
        found = forward_packed(model, rows, **how)
        return States(found.hidden * torch.nan, 0) if found.hidden.dtype == torch.bfloat16 else found

    monkeypatch.setattr(probing, "forward_packed", overflow_if_low)
    loaded = make_engine().load(LoadRequest(model_handle(bert, "bfloat16"), is_pinned=False))
    assert not loaded.is_packed and loaded.why_padded is not None and "cosine" in loaded.why_padded


def test_a_device_that_is_lost_in_the_probe_is_no_reason_to_pad(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*_: object, **__: object) -> States:
        raise DeviceLost("an illegal address")

    monkeypatch.setattr(probing, "forward_packed", lose)
    with pytest.raises(DeviceLost):
        make_engine().load(LoadRequest(model_handle(bert), is_pinned=False))


@contextmanager
def _memory_for(num_tokens: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A device with room for that many tokens a pass; gives the sizes that were tried."""
    tried: list[int] = []

    def encode_if_it_fits(loaded: LoadedModel, rows: Rows, plan: Plan) -> Encoded:
        tried.append(len(rows.token_ids))
        if len(rows.token_ids) > num_tokens:
            raise OutOfDeviceMemory("full")
        return encode(loaded, rows, plan)

    with monkeypatch.context() as patch:
        patch.setattr(torch_engine, "encode", encode_if_it_fits)
        yield tried


@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_batch_in_pieces_gives_the_same_vectors(bert: Path, pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, rows = make_engine(), _rows(7, longest=30)
    whole = vectors(engine, bert, rows, pooling=(pooling,))
    with _memory_for(35, monkeypatch):
        result = run_rows(engine, bert, rows, pooling=(pooling,))
    assert result.num_halvings > 0
    assert result.max_batch_tokens < 1024
    assert not result.row_errors
    _assert_close(result.vectors, whole)


def test_only_the_row_without_room_fails(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, rows = make_engine(), [[2, 3], [2] * 40, [2, 5, 3]]
    whole = vectors(engine, bert, rows)
    with _memory_for(20, monkeypatch):
        result = run_rows(engine, bert, rows)
    assert {row: error.code for row, error in result.row_errors.items()} == {1: "out_of_device_memory"}
    _assert_close(result.vectors[[0, 2]], whole[[0, 2]])
    assert not result.vectors[1].any()


def test_least_recently_used_model_makes_room_and_is_named(tmp_path: Path) -> None:
    folders = [make_tiny_model(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    for folder in folders:
        write_spec(folder, model_spec_of(folder))
    size = make_engine().load(LoadRequest(model_handle(folders[0]), is_pinned=False)).size_bytes
    engine = make_engine(memory_bytes=int(2.5 * size))
    assert run_rows(engine, folders[0], [[2, 3]]).load_s > 0
    assert run_rows(engine, folders[1], [[2, 3]]).evicted == ()
    assert run_rows(engine, folders[0], [[2, 3]]).load_s == 0
    assert run_rows(engine, folders[2], [[2, 3]]).evicted == ("b:float32",)
