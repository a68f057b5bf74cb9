"""The company that a text keeps changes nothing: packed among others, its vector is the one it has alone."""

from __future__ import annotations

import numpy as np
import pytest

from tests.embedding.conftest import Models
from tests.embedding.texts import COMPANY, ENGLISH, KOREAN
from tests.served import FloatArray, Served
from workers.offline_models import E5, MINILM

pytestmark = pytest.mark.integration

ALONE = 1e-5
"""Promised between one text's vectors in float32: other matrix shapes, other order of additions, no more."""
OURS = [ENGLISH[3], KOREAN[5]]
PLACES = [17, 44]


@pytest.fixture(scope="module")
def together() -> list[str]:
    """60 texts of different lengths, with ours among them."""
    texts = list(COMPANY)
    for place, text in zip(PLACES, OURS, strict=True):
        texts.insert(place, text)
    return texts


def assert_same(found: FloatArray, alone: FloatArray) -> None:
    np.testing.assert_allclose(found, alone, rtol=0, atol=ALONE)


@pytest.mark.parametrize("model", [MINILM, E5])
def test_a_text_among_sixty_others_has_the_vector_that_it_has_alone(
    served: Served, models: Models, together: list[str], model: str
) -> None:
    alone = np.concatenate([served.call_vectors(model, text) for text in OURS])
    assert_same(served.call_vectors(model, together, truncate="right")[PLACES], alone)
    assert_same(served.embed(model, together).vectors[PLACES], alone)
    assert_same(np.concatenate([served.embed(model, text).vectors for text in OURS]), alone)


@pytest.mark.parametrize("options", [{"pooling": "cls"}, {"pooling": "max", "layer": 1}, {"normalize": False}])
def test_with_other_options_too(
    served: Served, models: Models, together: list[str], options: dict[str, object]
) -> None:
    alone = np.concatenate([served.call_vectors("tiny-new", text, truncate="right", **options) for text in OURS])
    assert_same(served.embed("tiny-new", together, **options).vectors[PLACES], alone)


def test_a_batch_of_jobs_is_as_good_as_each_alone(served: Served, models: Models) -> None:
    texts = COMPANY[:20] + OURS
    jobs = [{"kind": "embedding", "model": MINILM, "input": text} for text in texts]
    answer = served.http.post("/v1/jobs/batch", json={"jobs": jobs}).raise_for_status().json()
    done = [served.wait(job["id"]) for job in answer["data"]]
    results = [served.http.get(job["result_url"]).raise_for_status().json()["data"] for job in done]
    found = np.array([items[0]["output"] for items in results], dtype=np.float32)
    assert_same(found[-2:], np.concatenate([served.call_vectors(MINILM, text) for text in OURS]))
