"""Every option means what sentence-transformers or transformers make of it, in both folder dialects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.embedding.conftest import NEW_MODULES, OLD_MODULES, Models
from tests.embedding.reference import POOLINGS, assert_equal, encode, run_transformer, states, token_ids
from tests.embedding.texts import ENGLISH, KOREAN
from tests.http.test_bad_input import assert_refused
from tests.served import FloatArray, Served, unit
from workers.offline_models import E5, MINILM

pytestmark = pytest.mark.integration

TEXTS = ["warm stones", "a", ENGLISH[0]]
"""Short enough for the tiny models, whose tokens are bytes."""
DIALECTS = pytest.mark.parametrize("model", ["tiny-old", "tiny-new"])


def both_ways(served: Served, model: str, texts: Any, **options: Any) -> FloatArray:
    """Vectors of a call, after a job has given the same."""
    found = served.call_vectors(model, texts, **options)
    np.testing.assert_allclose(served.embed(model, texts, **options).vectors, found, rtol=0, atol=1e-5)
    return found


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("model", [MINILM, "tiny-plain"])
def test_a_named_pooling_is_that_pooling_alone(served: Served, models: Models, model: str, pooling: str) -> None:
    folder = models.folders[model]
    expected = np.stack([POOLINGS[pooling](states(folder, token_ids(folder, text))) for text in TEXTS])
    assert_equal(both_ways(served, model, TEXTS, pooling=pooling, normalize=False), expected)
    assert_equal(served.call_vectors(model, TEXTS, pooling=pooling), unit(expected))


def test_the_pooler_is_the_models_own(served: Served, models: Models) -> None:
    folder = models.folders["tiny-plain"]
    outputs = [run_transformer(folder, token_ids(folder, text)).pooler_output[0].numpy() for text in TEXTS]
    assert_equal(both_ways(served, "tiny-plain", TEXTS, pooling="pooler", normalize=False), np.stack(outputs))


def test_a_model_without_a_pooler_says_what_it_can_do(served: Served, models: Models) -> None:
    for answer in (served.call(E5, "a", pooling="pooler"), served.submit(E5, "a", pooling="pooler")):
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "model_has_no_pooler"
        assert "mean" in answer.json()["error"]["message"]


@pytest.mark.parametrize("layer", [0, 1, -2, -3])
def test_a_layer_is_pooled_as_the_model_pools_without_its_modules(served: Served, models: Models, layer: int) -> None:
    tables = {
        name: [states(models.folders[name], token_ids(models.folders[name], text), layer) for text in TEXTS]
        for name in ("tiny-plain", "tiny-new")
    }
    for name, found in tables.items():
        expected = np.stack([table.mean(axis=0) for table in found])
        assert_equal(both_ways(served, name, TEXTS, layer=layer, normalize=False), expected)


@DIALECTS
def test_the_last_layer_by_its_number_is_the_last_layer(served: Served, models: Models, model: str) -> None:
    default = served.call_vectors(model, TEXTS)
    assert_equal(both_ways(served, model, TEXTS, layer=2), default)
    width = default.shape[1]
    assert_equal(both_ways(served, model, TEXTS, layer=2, dimensions=width), default)
    answer = served.call(model, TEXTS, layer=2, dimensions=width + 1)
    assert_refused(answer, 400, "dimensions")


def test_the_pooler_of_another_layer_is_refused(served: Served, models: Models) -> None:
    assert_refused(served.submit("tiny-plain", "a", pooling="pooler", layer=0), 400, "options.layer")
    assert_refused(served.call("tiny-plain", "a", pooling="pooler", layer=0), 400, "layer")


def test_pooling_none_gives_every_token_its_vector(served: Served, models: Models) -> None:
    folder = models.folders["tiny-plain"]
    tables = [states(folder, token_ids(folder, text)) for text in TEXTS]
    items = served.embed("tiny-plain", TEXTS, pooling="none", normalize=False).items
    for item, expected in zip(items, tables, strict=True):
        assert_equal(np.array(item["output"], dtype=np.float32), expected)
        assert item["tokens"] == len(expected)
        assert item["special_tokens"] == [0, len(expected) - 1]
    data = served.call("tiny-plain", TEXTS, pooling="none", dimensions=8).json()["data"]
    for item, expected in zip(data, tables, strict=True):
        assert_equal(np.array(item["embedding"], dtype=np.float32), unit(expected[:, :8]))


@DIALECTS
@pytest.mark.parametrize("texts", [TEXTS, KOREAN[:2]], ids=["english", "korean"])
def test_not_normalised_is_the_plain_output_of_sentence_transformers(
    served: Served, models: Models, model: str, texts: list[str]
) -> None:
    expected = encode(models.folders[model], texts)
    assert_equal(both_ways(served, model, texts, normalize=False, truncate="right"), expected)
    assert_equal(served.call_vectors(model, texts, truncate="right"), unit(expected))


def test_the_dialects_differ_in_what_they_normalise(served: Served, models: Models) -> None:
    lengths = {
        name: np.linalg.norm(served.call_vectors(name, TEXTS, normalize=False), axis=1)
        for name in ("tiny-old", "tiny-new")
    }
    np.testing.assert_allclose(lengths["tiny-old"], 1, atol=1e-5)  # its last module is Normalize
    assert not np.allclose(lengths["tiny-new"], 1, atol=0.01)


@DIALECTS
def test_dimensions_are_cut_from_the_plain_output(served: Served, models: Models, model: str) -> None:
    expected = encode(models.folders[model], TEXTS)[:, :8]
    assert_equal(both_ways(served, model, TEXTS, dimensions=8, normalize=False), expected)
    assert_equal(both_ways(served, model, TEXTS, dimensions=8), unit(expected))


def test_a_prompt_is_put_before_each_text(served: Served, models: Models) -> None:
    folder = models.folders["tiny-new"]
    expected = unit(encode(folder, TEXTS, prompt="look: "))
    assert_equal(both_ways(served, "tiny-new", TEXTS, prompt="look: "), expected)
    assert_equal(both_ways(served, "tiny-new", [f"look: {text}" for text in TEXTS]), expected)
    by_name = unit(encode(folder, TEXTS, prompt_name="query"))
    assert_equal(both_ways(served, "tiny-new", TEXTS, prompt_name="query"), by_name)
    assert_equal(both_ways(served, "tiny-new", TEXTS, input_type="query"), by_name)


def test_the_models_default_prompt_is_used_unless_another_is_asked_for(served: Served, models: Models) -> None:
    folder = models.folders["tiny-old"]
    default = both_ways(served, "tiny-old", TEXTS)
    assert_equal(default, encode(folder, TEXTS))
    assert_equal(default, encode(folder, TEXTS, prompt=OLD_MODULES.prompts["passage"]))
    assert_equal(both_ways(served, "tiny-old", TEXTS, prompt_name="query"), encode(folder, TEXTS, prompt_name="query"))
    assert_equal(both_ways(served, "tiny-old", TEXTS, input_type="document"), default)
    bare = both_ways(served, "tiny-old", TEXTS, prompt="")
    assert_equal(bare, encode(folder, TEXTS, prompt=""))
    assert not np.allclose(bare, default, atol=0.01)


def test_a_prompt_that_pooling_leaves_out_counts_as_context_only(served: Served, models: Models) -> None:
    """`include_prompt: false`: the vector differs from the bare text's and from one that pools the prompt."""
    folder, prompt = models.folders["tiny-old"], OLD_MODULES.prompts["query"]
    found = both_ways(served, "tiny-old", TEXTS, prompt_name="query")
    as_text = both_ways(served, "tiny-old", [prompt + text for text in TEXTS], prompt="")
    assert not np.allclose(found, as_text, atol=0.01)
    assert_equal(found, encode(folder, TEXTS, prompt=prompt))


def test_token_ids_get_no_prompt(served: Served, models: Models) -> None:
    folder = models.folders["tiny-old"]
    rows = [token_ids(folder, text) for text in TEXTS]
    assert_equal(both_ways(served, "tiny-old", rows), encode(folder, TEXTS, prompt=""))
    assert_refused(served.submit("tiny-old", rows, prompt_name="query"), 400, "options.prompt_name")


def test_what_an_import_says_of_a_model_is_what_it_serves(served: Served, models: Models) -> None:
    found = models.dimensions
    assert found == {E5: 384, "tiny-old": OLD_MODULES.dense, "tiny-new": NEW_MODULES.dense, "tiny-plain": 32}
    for name, dimensions in found.items():
        assert served.call_vectors(name, "a").shape == (1, dimensions)
        assert served.http.get(f"/v1/models/{name}").json()["dimensions"] == dimensions
