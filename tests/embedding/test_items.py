"""Each input has its own outcome, in input order; texts go through as they came."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest

from tests.embedding.conftest import Models
from tests.embedding.reference import assert_equal, encode, num_tokens, states, token_ids
from tests.embedding.texts import COMPANY, ENGLISH, ODD
from tests.http.test_bad_input import assert_refused
from tests.served import Finished, Served, unit
from workers.offline_models import E5, MINILM

pytestmark = pytest.mark.integration

BEYOND = " ".join(COMPANY[:40])
INPUTS = [ENGLISH[0], BEYOND, ENGLISH[1], ENGLISH[2], BEYOND]


@pytest.fixture(scope="module")
def partly(served: Served) -> Finished:
    """A job of five texts, of which the second and the last are too long and may not be cut."""
    return served.embed(MINILM, INPUTS, truncate="error")


def result(served: Served, done: Finished, media_type: str) -> Any:
    return served.http.get(done.job["result_url"], headers={"accept": media_type})


def test_a_bad_item_does_not_spoil_the_others(partly: Finished, models: Models) -> None:
    good = [0, 2, 3]
    assert [item["index"] for item in partly.items] == [0, 1, 2, 3, 4]
    assert [index for index, item in enumerate(partly.items) if "output" in item] == good
    found = np.array([partly.items[index]["output"] for index in good], dtype=np.float32)
    assert_equal(found, encode(models.folders[MINILM], [INPUTS[index] for index in good]))
    assert partly.job["usage"]["tokens"] == sum(num_tokens(models.folders[MINILM], ENGLISH[:3]))


def test_the_bad_items_say_what_is_wrong_with_them(partly: Finished, models: Models) -> None:
    for index in (1, 4):
        item = partly.items[index]
        assert set(item) == {"index", "error", "tokens", "truncated"}
        assert item["error"]["code"] == "context_length_exceeded"
        assert item["error"]["param"] == f"input[{index}]"
        assert item["tokens"] == len(token_ids(models.folders[MINILM], BEYOND))
        assert item["truncated"] is False


def test_ndjson_holds_the_same_items_one_a_line(served: Served, partly: Finished) -> None:
    answer = result(served, partly, "application/x-ndjson")
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in answer.text.splitlines()] == partly.items


def test_npy_is_refused_when_an_item_failed(served: Served, partly: Finished) -> None:
    assert_refused(result(served, partly, "application/x-npy"), 406, "Accept")


def test_npy_is_refused_when_rows_are_ragged(served: Served, models: Models) -> None:
    done = served.embed("tiny-plain", ["a", "abc"], pooling="none")
    assert_refused(result(served, done, "application/x-npy"), 406, "Accept")
    lines = result(served, done, "application/x-ndjson").text.splitlines()
    assert [len(json.loads(line)["output"]) for line in lines] == done.tokens


def test_npy_holds_the_same_numbers_as_json(served: Served, models: Models) -> None:
    done = served.embed(MINILM, ENGLISH)
    table = np.load(io.BytesIO(result(served, done, "application/x-npy").content), allow_pickle=False)
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, done.vectors)


def test_a_job_in_which_every_item_fails_has_failed(served: Served, models: Models) -> None:
    job = served.wait(served.submit(MINILM, [BEYOND, BEYOND], truncate="error").json()["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "context_length_exceeded")


def test_the_first_item_of_a_ragged_job_may_fail_too(served: Served, models: Models) -> None:
    folder, short = models.folders["tiny-plain"], "warm"
    done = served.embed("tiny-plain", ["x" * 100, short], pooling="none", dimensions=8, truncate="error")
    assert done.items[0]["error"]["code"] == "context_length_exceeded"
    found = np.array(done.items[1]["output"], dtype=np.float32)
    assert_equal(found, unit(states(folder, token_ids(folder, short))[:, :8]))
    answer = served.call("tiny-plain", ["x" * 100, short], pooling="none", dimensions=8)
    assert_refused(answer, 400, "input[0]")


@pytest.mark.parametrize("model", [MINILM, E5, "tiny-plain"])
def test_a_token_id_outside_the_vocabulary_is_refused_before_it_is_stored(
    served: Served, models: Models, model: str
) -> None:
    size = {MINILM: 30_522, E5: 250_037, "tiny-plain": 400}[model]
    assert served.call(model, [5, size - 1]).status_code == 200
    for answer in (served.call(model, [[5], [6, size]]), served.submit(model, [[5], [6, size]])):
        assert_refused(answer, 400, "input[1]")
        assert str(size) in answer.json()["error"]["message"]


@pytest.mark.parametrize("model", [MINILM, E5, "tiny-plain"])
def test_odd_texts_reach_the_tokenizer_as_they_came(served: Served, models: Models, model: str) -> None:
    folder, texts = models.folders[model], list(ODD.values())
    limit = {MINILM: 256, E5: 512, "tiny-plain": 64}[model]
    done = served.embed(model, texts)
    by_call = served.call_vectors(model, texts, truncate="right")
    for index, name in enumerate(ODD):
        ids = token_ids(folder, texts[index])
        item = done.items[index]
        assert (item["tokens"], item["truncated"]) == (min(len(ids), limit), len(ids) > limit), name
        kept = [*ids[: limit - 1], ids[-1]] if len(ids) > limit else ids
        expected = unit(states(folder, kept).mean(axis=0)[None])
        assert_equal(done.vectors[index : index + 1], expected)
        assert_equal(by_call[index : index + 1], expected)


def test_nothing_is_put_into_another_normal_form_before_the_model_does(served: Served, models: Models) -> None:
    """A byte-level tokenizer sees the difference between composed and decomposed Hangul."""
    composed, decomposed = served.embed("tiny-plain", ["온", "\u110b\u1169\u11ab"], normalize=False).vectors
    assert not np.allclose(composed, decomposed, atol=0.01)


def test_a_text_that_goes_on_for_a_hundred_kilobytes_is_served(served: Served, models: Models) -> None:
    text = "온돌 is warm. " * 6_000
    done = served.embed(MINILM, [text, "short"])
    assert (done.tokens[0], done.items[0]["truncated"]) == (256, True)
