"""OpenAI's own client, unmodified, gets the vectors that sentence-transformers gives; so does a job."""

from __future__ import annotations

import numpy as np
import openai
import pytest

from tests.embedding.conftest import Models
from tests.embedding.reference import TOLERANCE, assert_equal, encode, num_tokens, token_ids
from tests.embedding.texts import ENGLISH, KOREAN
from tests.served import FloatArray, Served, unit
from workers.offline_models import E5, MINILM

pytestmark = pytest.mark.integration

REAL = pytest.mark.parametrize("model", [MINILM, E5])
LANGUAGES = pytest.mark.parametrize("texts", [ENGLISH, KOREAN], ids=["english", "korean"])


def vectors_of(answer: openai.types.CreateEmbeddingResponse) -> FloatArray:
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return np.array([item.embedding for item in answer.data], dtype=np.float32)


@REAL
@LANGUAGES
def test_base64_which_is_the_clients_default_equals_the_reference(
    client: openai.OpenAI, models: Models, model: str, texts: list[str]
) -> None:
    answer = client.embeddings.create(model=model, input=texts)
    assert_equal(vectors_of(answer), encode(models.folders[model], texts))
    assert answer.model == f"{model}:1"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(num_tokens(models.folders[model], texts))


@REAL
def test_floats_are_the_same_numbers_as_base64(client: openai.OpenAI, models: Models, model: str) -> None:
    by_base64 = vectors_of(client.embeddings.create(model=model, input=KOREAN))
    by_float = vectors_of(client.embeddings.create(model=model, input=KOREAN, encoding_format="float"))
    # Two runs of the model, perhaps beside other rows.
    np.testing.assert_allclose(by_float, by_base64, rtol=0, atol=1e-5)


@REAL
def test_one_string_gives_one_vector(client: openai.OpenAI, models: Models, model: str) -> None:
    answer = client.embeddings.create(model=model, input=ENGLISH[0])
    assert_equal(vectors_of(answer), encode(models.folders[model], ENGLISH[:1]))


@REAL
def test_token_ids_are_taken_as_they_come(client: openai.OpenAI, models: Models, model: str) -> None:
    folder = models.folders[model]
    rows = [token_ids(folder, text) for text in KOREAN[:4]]
    expected = encode(folder, KOREAN[:4])
    many = client.embeddings.create(model=model, input=rows)
    assert_equal(vectors_of(many), expected)
    assert many.usage.prompt_tokens == sum(map(len, rows))
    assert_equal(vectors_of(client.embeddings.create(model=model, input=rows[2])), expected[2:3])


@REAL
@pytest.mark.parametrize("dimensions", [1, 64, 384])
def test_dimensions_are_cut_and_brought_to_length_one_again(
    client: openai.OpenAI, models: Models, model: str, dimensions: int
) -> None:
    found = vectors_of(client.embeddings.create(model=model, input=ENGLISH, dimensions=dimensions))
    assert_equal(found, unit(encode(models.folders[model], ENGLISH)[:, :dimensions]))


@pytest.mark.parametrize("name", ["query", "passage"])
def test_the_models_own_prompt_goes_before_each_text(client: openai.OpenAI, models: Models, name: str) -> None:
    input_type = "query" if name == "query" else "document"
    expected = encode(models.folders[E5], KOREAN, prompt_name=name)
    for field in ({"prompt_name": name}, {"input_type": input_type}):
        answer = client.embeddings.create(model=E5, input=KOREAN, extra_body=field)
        assert_equal(vectors_of(answer), expected)
        prompted = [f"{name}: {text}" for text in KOREAN]
        assert answer.usage.prompt_tokens == sum(num_tokens(models.folders[E5], prompted))


@REAL
@LANGUAGES
def test_jobs_give_the_same_vectors_and_count_the_same_tokens(
    served: Served, models: Models, model: str, texts: list[str]
) -> None:
    done = served.embed(model, texts)
    assert_equal(done.vectors, encode(models.folders[model], texts))
    assert done.tokens == num_tokens(models.folders[model], texts)
    assert done.job["usage"]["tokens"] == done.result["usage"]["tokens"] == sum(done.tokens)
    assert not any(item["truncated"] for item in done.items)


@REAL
def test_a_stored_call_gives_them_too(client: openai.OpenAI, models: Models, model: str) -> None:
    answer = client.embeddings.create(model=model, input=ENGLISH, extra_body={"store": True})
    assert_equal(vectors_of(answer), encode(models.folders[model], ENGLISH))


def test_the_vectors_of_a_job_in_base64_are_the_same_numbers(served: Served, models: Models) -> None:
    import base64

    done = served.embed(MINILM, ENGLISH, encoding="base64")
    found = np.stack([np.frombuffer(base64.b64decode(item["output"]), dtype="<f4") for item in done.items])
    np.testing.assert_allclose(found, encode(models.folders[MINILM], ENGLISH), rtol=0, atol=TOLERANCE)


def test_several_clients_in_a_row_need_no_model_list_of_their_own(client: openai.OpenAI, models: Models) -> None:
    listed = {model.id for model in client.models.list()}
    assert set(models.folders) <= listed
    assert client.models.retrieve(E5).id == E5
