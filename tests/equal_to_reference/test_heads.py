"""Logits of task heads equal those of the reference model for each row alone, in any company, packed or padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from ondol.contract.errors import InvalidPayload, ModelCannot, ModelRefused, OutOfDeviceMemory
from tests.equal_to_reference.engines import make_engine, run_rows, vectors
from tests.tiny_models import LABELS, MODEL_TYPES, PADDED_TYPES, TAGS, make_tiny_head, make_tiny_model
from tests.tiny_specs import model_handle, model_spec_of, write_spec
from workers.device import encoding, torch_engine
from workers.device.checks import Plan
from workers.device.encoding import Encoded, encode
from workers.device.engine import FloatArray, ProbeRequest
from workers.device.fidelity import compare_logits, worse
from workers.device.head_probing import settle_layout
from workers.device.heads import Layout, TaskHead
from workers.device.loading import LoadedModel, load_model
from workers.device.packed import register_packed_attention
from workers.device.probing import why_not_packed
from workers.device.rows import Rows
from workers.device.torch_engine import TorchEngine

pytestmark = pytest.mark.unit

Task = Literal["text-classification", "token-classification"]
TASKS: tuple[Task, ...] = ("text-classification", "token-classification")
TOLERANCE = 1e-4
"""The promise to users; rounding stays far below."""
COMPANY_TOLERANCE = 1e-5
"""Float32 rounding of a few layers, in units of the largest logit."""
CASES = [(model_type, task) for model_type in MODEL_TYPES for task in TASKS]


@dataclass(frozen=True, slots=True)
class Reference:
    """A folder with a head, and the model that transformers makes of it."""

    folder: Path
    model_type: str
    task: Task
    model: Any

    def logits(self, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None) -> FloatArray:
        """Logits [B, C] or [T, C] of each row alone, end to end."""
        found = []
        with torch.inference_mode():
            for i, row in enumerate(rows):
                inputs = {"input_ids": torch.tensor([row])}
                if types is not None:
                    inputs["token_type_ids"] = torch.tensor([types[i]])
                logits = self.model(**inputs).logits
                found.append(logits[0] if self.task == "token-classification" else logits)
        return np.asarray(torch.cat(found).numpy())


def _reference(folder: Path, model_type: str, task: Task) -> Reference:
    kind = "Sequence" if task == "text-classification" else "Token"
    auto_class = getattr(transformers, f"AutoModelFor{kind}Classification")
    return Reference(folder, model_type, task, auto_class.from_pretrained(folder, dtype=torch.float32).eval())


def _make(folder: Path, model_type: str, task: Task, **options: Any) -> Reference:
    make_tiny_head(folder, model_type, task=task, **options)
    write_spec(folder, model_spec_of(folder))
    return _reference(folder, model_type, task)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    model_type, task = request.param
    return _make(tmp_path_factory.mktemp("heads") / f"{model_type}-{task}", model_type, task)


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    """One engine for all tests that change nothing in it: a model is loaded once."""
    return make_engine()


@pytest.fixture(scope="module", params=TASKS)
def bert(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return _make(tmp_path_factory.mktemp("heads") / f"bert-{request.param}", "bert", request.param)


def _rows(seed: int, num_rows: int = 10, longest: int = 64) -> list[list[int]]:
    """Random rows of 1 to `longest` tokens, some alike in length."""
    generator = np.random.default_rng(seed)
    lengths = [1, 9, 9, 10, longest, *generator.integers(1, longest, num_rows - 5)]
    return [generator.integers(5, 400, length).tolist() for length in lengths]


def _assert_close(found: FloatArray, expected: FloatArray, tolerance: float) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1.0, float(np.abs(expected).max())))


def _load(folder: Path) -> LoadedModel:
    return load_model(model_handle(folder), model_spec_of(folder), torch.device("cpu"))


def test_logits_are_the_models_own_in_any_company(engine: TorchEngine, reference: Reference) -> None:
    rows = _rows(1)
    together = vectors(engine, reference.folder, rows, task=reference.task)
    _assert_close(together, reference.logits(rows), TOLERANCE)
    alone = [vectors(engine, reference.folder, [row], task=reference.task) for row in rows]
    _assert_close(together, np.concatenate(alone), COMPANY_TOLERANCE)
    backwards = vectors(engine, reference.folder, rows[::-1], task=reference.task)
    _assert_close(backwards, np.concatenate(alone[::-1]), COMPANY_TOLERANCE)


def test_heads_are_packed_where_their_base_is(engine: TorchEngine, reference: Reference) -> None:
    loaded = _load(reference.folder)
    assert loaded.is_packed == (reference.model_type not in PADDED_TYPES)
    assert loaded.head is not None
    assert loaded.head.layout is (Layout.FLAT if loaded.is_packed else Layout.PADDED)
    result = run_rows(engine, reference.folder, [[7, 8, 9], [7, 8]], task=reference.task)
    assert result.num_padding == (0 if loaded.is_packed else 1)


def test_type_ids_of_pairs_reach_the_head(engine: TorchEngine, reference: Reference) -> None:
    rows = _rows(2, num_rows=6)
    types = [[int(i > len(row) // 2) for i in range(len(row))] for row in rows]
    if model_spec_of(reference.folder).type_vocab_size < 2:
        with pytest.raises(InvalidPayload):
            vectors(engine, reference.folder, rows, task=reference.task, type_ids=types)
        return
    found = vectors(engine, reference.folder, rows, task=reference.task, type_ids=types)
    _assert_close(found, reference.logits(rows, types), TOLERANCE)
    assert np.abs(found - vectors(engine, reference.folder, rows, task=reference.task)).max() > 100 * TOLERANCE


def test_embeddings_of_a_model_with_head_are_its_base_models(engine: TorchEngine, reference: Reference) -> None:
    rows = _rows(3, num_rows=6)
    with torch.inference_mode():
        outputs = [reference.model.base_model(input_ids=torch.tensor([row])) for row in rows]
    states = torch.cat([output.last_hidden_state[0] for output in outputs]).numpy()
    _assert_close(vectors(engine, reference.folder, rows, pooling=("none",)), states, COMPANY_TOLERANCE)
    if model_spec_of(reference.folder).has_pooler:
        expected = torch.cat([output.pooler_output for output in outputs]).numpy()
        _assert_close(vectors(engine, reference.folder, rows, pooling=("pooler",)), expected, COMPANY_TOLERANCE)
        return
    with pytest.raises(ModelCannot) as caught:
        vectors(engine, reference.folder, rows, pooling=("pooler",))
    assert caught.value.code == "model_has_no_pooler"


def test_logits_and_embeddings_take_turns(engine: TorchEngine, bert: Reference) -> None:
    rows = _rows(4, num_rows=6)
    before = vectors(engine, bert.folder, rows)
    logits = vectors(engine, bert.folder, rows, task=bert.task)
    np.testing.assert_array_equal(vectors(engine, bert.folder, rows), before)
    np.testing.assert_array_equal(vectors(engine, bert.folder, rows, task=bert.task), logits)


def test_pooling_layer_and_skip_say_nothing_to_a_head(engine: TorchEngine, bert: Reference) -> None:
    rows = [[2, 9, 8, 3], [2, 5, 3]]
    plain = vectors(engine, bert.folder, rows, task=bert.task)
    asked = vectors(engine, bert.folder, rows, task=bert.task, pooling=("median",), layer=99, skip=[1, 1])
    np.testing.assert_array_equal(asked, plain)


@pytest.mark.parametrize(
    ("labels", "problem_type"),
    [
        (LABELS, "single_label_classification"),
        (LABELS, "multi_label_classification"),
        (("score",), "regression"),
        (("score",), None),
        (("price", "size"), "regression"),
    ],
)
def test_problem_types_change_no_logit(
    engine: TorchEngine, tmp_path: Path, labels: tuple[str, ...], problem_type: str | None
) -> None:
    made = _make(tmp_path / tmp_path.name, "bert", "text-classification", labels=labels, problem_type=problem_type)
    rows = _rows(5, num_rows=6)
    found = vectors(engine, made.folder, rows, task="text-classification")
    assert found.shape == (len(rows), len(labels))
    _assert_close(found, made.logits(rows), TOLERANCE)


def test_head_that_reads_the_mean_gets_each_texts_own_states(engine: TorchEngine, tmp_path: Path) -> None:
    made = _make(tmp_path / "mean", "modernbert", "text-classification", config={"classifier_pooling": "mean"})
    rows = _rows(6, num_rows=14)
    loaded = _load(made.folder)
    assert loaded.is_packed
    assert loaded.head is not None
    assert loaded.head.layout is Layout.OWN_STATES
    found = vectors(engine, made.folder, rows, task=made.task)
    _assert_close(found, made.logits(rows), TOLERANCE)
    alone = np.concatenate([vectors(engine, made.folder, [row], task=made.task) for row in rows[:4]])
    _assert_close(found[:4], alone, COMPANY_TOLERANCE)


class _Running(nn.Module):
    """A token head that reads everything to the left: right in a text's own states, wrong across texts."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.linear(states.cumsum(dim=1) / 10))


class _Wrapping(_Running):
    """A token head whose first token reads the last place, padding or not: only right for a row alone."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.linear(states + states.roll(1, dims=1)))


@pytest.mark.parametrize(("classifier", "layout"), [(_Running, Layout.OWN_STATES), (_Wrapping, Layout.ALONE)])
def test_unusual_heads_get_the_layout_that_is_right(tmp_path: Path, classifier: type[_Running], layout: Layout) -> None:
    made = _make(tmp_path / "unusual", "bert", "token-classification")
    made.model.classifier = classifier(made.model.classifier)
    rows = _rows(7)
    expected = made.logits(rows)
    spec = model_spec_of(made.folder)
    register_packed_attention()
    head = TaskHead(made.model, task=made.task, position_offset=0, pad_token_id=spec.pad_token_id, ref="m:1")
    own = made.model.config._attn_implementation
    why = settle_layout(head, spec, own_attention=own, why_padded=why_not_packed(head.base, spec), ref="m:1")
    assert head.layout is layout
    assert (why is None) == (layout is Layout.OWN_STATES)
    with torch.inference_mode():
        found = head.logits(Rows.of_lists(rows)).values.numpy()
    _assert_close(found, expected, TOLERANCE)
    if why is not None:
        assert "no packed layout" in why
        assert made.model.config._attn_implementation == own


def test_head_that_the_version_lacks_is_refused_by_name(bert: Reference, tmp_path: Path) -> None:
    other = next(task for task in TASKS if task != bert.task)
    with pytest.raises(ModelCannot, match=f"can do {bert.task} and embedding") as caught:
        vectors(make_engine(), bert.folder, [[2, 3]], task=other)
    assert caught.value.code == "model_has_no_head"
    plain = make_tiny_model(tmp_path / "plain")
    write_spec(plain, model_spec_of(plain))
    with pytest.raises(ModelCannot, match="can do embedding"):
        vectors(make_engine(), plain, [[2, 3]], task=bert.task)
    with pytest.raises(InvalidPayload, match="does not know the task"):
        vectors(make_engine(), plain, [[2, 3]], task="fill-mask")


@pytest.mark.parametrize(
    ("model_type", "task", "lost"),
    [
        ("bert", "text-classification", "classifier."),
        ("bert", "text-classification", "bert.pooler."),
        ("bert", "token-classification", "classifier."),
        ("roberta", "text-classification", "classifier.out_proj."),
        ("deberta-v2", "text-classification", "pooler."),
        ("distilbert", "text-classification", "pre_classifier."),
    ],
)
def test_head_with_random_weights_is_refused(tmp_path: Path, model_type: str, task: Task, lost: str) -> None:
    folder = _make(tmp_path / "torn", model_type, task).folder
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(lost)}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    names = tuple(set(tensors) - set(kept))
    # Whatever an older import noted as missing, a head is whole or not served.
    write_spec(folder, model_spec_of(folder, missing_weights=names, has_pooler=False))
    for run_task in (task, "embedding"):
        with pytest.raises(ModelRefused, match="is not whole"):
            vectors(make_engine(), folder, [[2, 3]], task=run_task)


def test_another_number_of_classes_than_labels_is_refused(bert: Reference) -> None:
    spec = model_spec_of(bert.folder, labels=("a", "b"))
    with pytest.raises(ModelRefused, match=r"names 2"):
        load_model(model_handle(bert.folder), spec, torch.device("cpu"))


@contextmanager
def _memory_for(num_tokens: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A device with room for that many tokens a pass."""

    def encode_if_it_fits(loaded: LoadedModel, rows: Rows, plan: Plan) -> Encoded:
        if len(rows.token_ids) > num_tokens:
            raise OutOfDeviceMemory("full")
        return encode(loaded, rows, plan)

    with monkeypatch.context() as patch:
        patch.setattr(torch_engine, "encode", encode_if_it_fits)
        yield


def test_batch_in_pieces_gives_the_same_logits(bert: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    rows = _rows(8, longest=30)
    whole = vectors(engine, bert.folder, rows, task=bert.task)
    with _memory_for(35, monkeypatch):
        result = run_rows(engine, bert.folder, rows, task=bert.task)
    assert result.num_halvings > 0
    assert not result.row_errors
    _assert_close(result.vectors, whole, COMPANY_TOLERANCE)


def test_only_the_row_without_room_has_no_logits(bert: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    rows = [[2, 3], [2] * 40, [2, 5, 3]]
    whole = vectors(engine, bert.folder, rows, task=bert.task)
    with _memory_for(20, monkeypatch):
        result = run_rows(engine, bert.folder, rows, task=bert.task)
    assert {row: error.code for row, error in result.row_errors.items()} == {1: "out_of_device_memory"}
    lost = slice(2, 42) if bert.task == "token-classification" else slice(1, 2)
    assert result.vectors.shape == whole.shape
    assert not result.vectors[lost].any()
    whole[lost] = 0
    _assert_close(result.vectors, whole, COMPANY_TOLERANCE)


def test_bfloat16_logits_agree_by_cosine(engine: TorchEngine, bert: Reference) -> None:
    rows = _rows(9, num_rows=6)
    low = vectors(engine, bert.folder, rows, task=bert.task, dtype="bfloat16")
    assert low.dtype == np.float32
    assert compare_logits(low, bert.logits(rows)).min_cosine > 0.99


def test_dtype_is_judged_by_vectors_and_by_logits(bert: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "native_dtypes", lambda _device: ("float32", "bfloat16"))
    noisy = encode

    def spoil_low_logits(loaded: LoadedModel, rows: Rows, plan: Plan) -> Encoded:
        found = noisy(loaded, rows, plan)
        if plan.head_task is None or loaded.handle.dtype == "float32":
            return found
        return Encoded(found.vectors[:, ::-1], found.num_padding)

    monkeypatch.setattr(encoding, "encode", spoil_low_logits)
    bad = make_engine().probe(ProbeRequest(model_handle(bert.folder)))
    assert bad.dtype == "float32"
    assert bad.fidelity["bfloat16"].min_cosine < 0.9
    assert bad.fidelity["float32"].min_cosine == pytest.approx(1.0, abs=1e-6)


def test_one_logit_is_compared_by_its_relative_difference() -> None:
    reference = np.asarray([[2.0], [-1.0], [0.0]], dtype=np.float32)
    assert compare_logits(reference, reference).min_cosine == 1.0
    off = compare_logits(reference + np.float32(0.02), reference)
    assert off.min_cosine == pytest.approx(1 - 0.01**2 / 2, abs=1e-6)
    broken = compare_logits(np.full_like(reference, np.nan), reference)
    assert (broken.mean_cosine, broken.min_cosine) == (0.0, 0.0)
    overflown = compare_logits(np.full_like(reference, np.inf), reference)
    assert (overflown.mean_cosine, overflown.min_cosine) == (-1.0, -1.0), "a number, which JSON has"
    assert worse(off, broken) == broken


def test_tags_of_the_tiny_models_are_as_many_as_their_heads(bert: Reference) -> None:
    spec = model_spec_of(bert.folder)
    assert spec.labels == (LABELS if bert.task == "text-classification" else TAGS)
