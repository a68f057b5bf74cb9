"""How to turn texts into vectors."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from ondol import AsyncOndol, Ondol

pytestmark = pytest.mark.integration

MODEL = "all-minilm-l6-v2"
QUESTION = "How do I reset my password?"
ANSWER = "Click on 'forgot password' to choose a new one."
WEATHER = "It will rain in the mountains tomorrow."


def test_a_list_of_texts_gives_one_unit_vector_each(client: Ondol) -> None:
    vectors = client.embed([QUESTION, ANSWER, WEATHER], model=MODEL)
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)  # normalised in float32


def test_texts_with_like_meanings_have_like_vectors(client: Ondol) -> None:
    question, answer, weather = client.embed([QUESTION, ANSWER, WEATHER], model=MODEL)
    assert question @ answer > question @ weather + 0.3


def test_one_text_gives_one_vector(client: Ondol) -> None:
    assert client.embed(QUESTION, model=MODEL).shape == (384,)


def test_shorter_vectors_are_cut_and_normalised_again(client: Ondol) -> None:
    whole = client.embed(QUESTION, model=MODEL)
    short = client.embed(QUESTION, model=MODEL, dimensions=64)
    np.testing.assert_allclose(short, whole[:64] / np.linalg.norm(whole[:64]), atol=1e-5)  # float32 of two requests


def test_many_texts_go_as_durable_jobs_by_themselves(client: Ondol) -> None:
    texts = [f"This is sentence number {number}." for number in range(200)]
    vectors = client.embed(texts, model=MODEL)
    assert vectors.shape == (200, 384)
    alone = client.embed(texts[117], model=MODEL)
    np.testing.assert_allclose(vectors[117], alone, atol=1e-5)  # the company a text keeps changes nothing


def test_a_text_that_is_too_long_is_cut_unless_refusing_is_asked_for(client: Ondol) -> None:
    long = "word " * 1000
    assert client.embed([long, QUESTION], model=MODEL).shape == (2, 384)
    outcome = client.embed([QUESTION, long], model=MODEL, truncate="error", errors="return")
    assert outcome.errors[1].code == "context_length_exceeded"
    np.testing.assert_allclose(outcome.vectors[0], client.embed(QUESTION, model=MODEL), atol=1e-5)


def test_the_async_client_has_the_same_methods(ondol_url: str) -> None:
    async def embed_both() -> np.ndarray:
        async with AsyncOndol(ondol_url) as client:
            one, two = await asyncio.gather(client.embed(QUESTION, model=MODEL), client.embed(ANSWER, model=MODEL))
        return np.stack([one, two])

    assert asyncio.run(embed_both()).shape == (2, 384)
