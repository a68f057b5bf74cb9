"""Texts that are too long: refused, cut at the end or the beginning, or pooled in windows; never silently."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.embedding.conftest import OLD_MODULES, Models
from tests.embedding.reference import assert_equal, encode, states, token_ids
from tests.embedding.texts import COMPANY, ENGLISH, KOREAN
from tests.http.test_bad_input import assert_refused
from tests.served import FloatArray, Served, unit
from workers.offline_models import E5, MINILM

pytestmark = pytest.mark.integration

LONG = " ".join(ENGLISH)
BEYOND = " ".join(COMPANY[:40])
REAL = pytest.mark.parametrize("model", [MINILM, E5])
SIDES = pytest.mark.parametrize("side", ["right", "left"])


def test_what_the_tokenizers_file_says_of_length_and_padding_does_not_count(served: Served, models: Models) -> None:
    """MiniLM's tokenizer.json cuts at 128 tokens and pads to 128; the model takes 256."""
    text = " ".join(ENGLISH * 2)
    [expected] = [len(token_ids(models.folders[MINILM], text))]
    assert 128 < expected < 256
    done = served.embed(MINILM, [text, "short"])
    assert done.tokens == [expected, 3]
    assert_equal(done.vectors, encode(models.folders[MINILM], [text, "short"]))


@REAL
@SIDES
def test_a_cut_text_keeps_its_special_tokens_and_says_that_it_was_cut(
    served: Served, models: Models, model: str, side: str
) -> None:
    texts = [LONG, ENGLISH[0], KOREAN[0] * 4]
    expected = encode(models.folders[model], texts, max_length=24, side=side)
    done = served.embed(model, texts, max_length=24, truncate=side)
    assert_equal(done.vectors, expected)
    assert [item["truncated"] for item in done.items] == [True, False, True]
    assert done.tokens == [24, len(token_ids(models.folders[model], ENGLISH[0])), 24]
    answer = served.call(model, texts, max_length=24, truncate=side)
    assert answer.json()["usage"]["prompt_tokens"] == sum(done.tokens)
    assert_equal(served.call_vectors(model, texts, max_length=24, truncate=side), expected)


def test_the_shortest_length_has_room_for_one_token(served: Served, models: Models) -> None:
    done = served.embed(MINILM, LONG, max_length=3)
    assert done.tokens == [3]
    assert_equal(done.vectors, encode(models.folders[MINILM], [LONG], max_length=3))


@pytest.mark.parametrize("long_text", ["truncate", "window"])
@pytest.mark.parametrize("max_length", [1, 2])
def test_a_length_without_room_for_a_text_is_refused(
    served: Served, models: Models, max_length: int, long_text: str
) -> None:
    options = {"max_length": max_length, "long_text": long_text}
    answer = served.call(MINILM, "a", **options)
    assert answer.status_code == 400
    assert "2 special tokens" in answer.json()["error"]["message"]
    job = served.wait(served.submit(MINILM, [" ", LONG], **options).json()["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "invalid_payload")


def test_jobs_cut_by_themselves_and_calls_refuse(served: Served, models: Models) -> None:
    done = served.embed(MINILM, [BEYOND, "short"])
    assert [item["truncated"] for item in done.items] == [True, False]
    assert done.tokens == [256, 3]
    assert_equal(done.vectors, encode(models.folders[MINILM], [BEYOND, "short"]))
    answer = served.call(MINILM, ["short", BEYOND])
    assert_refused(answer, 400, "input[1]")
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    num_tokens = len(token_ids(models.folders[MINILM], BEYOND))
    assert all(str(part) in error["message"] for part in (num_tokens, 256))


def test_the_limit_asked_for_is_the_one_that_is_named(served: Served, models: Models) -> None:
    answer = served.call(MINILM, LONG, max_length=20)
    assert_refused(answer, 400, "input[0]")
    assert "takes 20" in answer.json()["error"]["message"]


@REAL
def test_more_than_the_model_takes_is_refused(served: Served, models: Models, model: str) -> None:
    limit = {MINILM: 256, E5: 512}[model]
    assert served.call(model, "a", max_length=limit).status_code == 200
    for answer, param in (
        (served.call(model, "a", max_length=limit + 1), "max_length"),
        (served.submit(model, "a", max_length=limit + 1), "options.max_length"),
    ):
        assert_refused(answer, 400, param)
        assert str(limit) in answer.json()["error"]["message"]


@SIDES
def test_token_ids_are_cut_where_asked_and_nothing_is_added(served: Served, models: Models, side: str) -> None:
    folder = models.folders["tiny-plain"]
    ids = token_ids(folder, "the fire burns below, the whole house stays warm")
    kept = ids[:12] if side == "right" else ids[-12:]
    done = served.embed("tiny-plain", [ids, kept], max_length=12, truncate=side, normalize=False)
    assert [item["truncated"] for item in done.items] == [True, False]
    expected = states(folder, kept).mean(axis=0)
    assert_equal(done.vectors, np.stack([expected, expected]))
    assert_refused(served.call("tiny-plain", [ids], max_length=12), 400, "input[0]")


def windows(ids: list[int], limit: int) -> list[list[int]]:
    """A text's ids in windows of at most `limit`, each between the first and the last token of the whole."""
    own, room = ids[1:-1], limit - 2
    return [[ids[0], *own[start : start + room], ids[-1]] for start in range(0, len(own), room)]


def pooled_windows(parts: list[list[int]], weights: list[int], folder: Any, pool: Any) -> FloatArray:
    vectors = np.stack([pool(states(folder, part)) for part in parts])
    return np.asarray(np.average(vectors, axis=0, weights=weights), dtype=np.float32)


@pytest.mark.parametrize(("model", "limit"), [(MINILM, 32), (MINILM, 256), (E5, 48), ("tiny-plain", 20)])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_windows_are_pooled_by_their_length(
    served: Served, models: Models, model: str, limit: int, pooling: str
) -> None:
    folder = models.folders[model]
    text = BEYOND[:2000] if limit == 256 else LONG
    parts = windows(token_ids(folder, text), limit)
    assert len(parts) > 1
    pool = {"mean": lambda table: table.mean(axis=0), "cls": lambda table: table[0]}[pooling]
    expected = pooled_windows(parts, [len(part) - 2 for part in parts], folder, pool)
    options = {"long_text": "window", "max_length": limit, "pooling": pooling, "normalize": False}
    done = served.embed(model, [text, "a"], **options)
    assert_equal(done.vectors[0], expected)
    assert done.tokens == [sum(map(len, parts)), 3]
    assert not any(item["truncated"] for item in done.items)
    assert_equal(served.call_vectors(model, [text], **options), expected[None])
    assert_equal(served.call_vectors(model, [text], **options | {"normalize": True}), unit(expected[None]))


def test_token_ids_in_windows_lose_nothing(served: Served, models: Models) -> None:
    folder = models.folders["tiny-plain"]
    ids = token_ids(folder, "the fire burns below, the whole house stays warm")
    parts = [ids[start : start + 12] for start in range(0, len(ids), 12)]
    expected = pooled_windows(parts, [len(part) for part in parts], folder, lambda table: table.mean(axis=0))
    done = served.embed("tiny-plain", [ids], max_length=12, long_text="window", normalize=False)
    assert_equal(done.vectors, expected[None])
    assert (done.tokens, done.items[0]["truncated"]) == ([len(ids)], False)


def test_a_prompt_that_pooling_leaves_out_is_left_out_of_windows(served: Served, models: Models) -> None:
    """The prompt's tokens stand in the first window, are no part of its vector, and lend it no weight."""
    folder, prompt = models.folders["tiny-old"], OLD_MODULES.prompts["query"]
    text = "the fire burns below, the whole house stays warm"
    parts = windows(token_ids(folder, prompt + text), 20)
    num_prompt = len(token_ids(folder, prompt)) - 1
    assert 1 < num_prompt < 19
    kept = [states(folder, part)[num_prompt if i == 0 else 0 :] for i, part in enumerate(parts)]
    weights = [len(part) - 2 for part in parts]
    weights[0] -= num_prompt - 1
    expected = np.average([table.mean(axis=0) for table in kept], axis=0, weights=weights).astype(np.float32)
    options = {"max_length": 20, "long_text": "window", "pooling": "mean", "normalize": False}
    done = served.embed("tiny-old", text, prompt_name="query", **options)
    assert_equal(done.vectors[0], expected)


def test_a_prompt_that_is_cut_away_on_the_left_takes_no_text_with_it(served: Served, models: Models) -> None:
    folder, prompt = models.folders["tiny-old"], OLD_MODULES.prompts["query"]
    text = "the fire burns below, the whole house stays warm"
    ids = token_ids(folder, prompt + text)
    kept = [ids[0], *ids[-9:]]
    assert ids[-9:] == token_ids(folder, text)[-9:]  # nothing of the prompt is left
    options = {"max_length": 10, "pooling": "mean", "normalize": False}
    done = served.embed("tiny-old", text, prompt_name="query", truncate="left", **options)
    assert_equal(done.vectors[0], states(folder, kept).mean(axis=0))
