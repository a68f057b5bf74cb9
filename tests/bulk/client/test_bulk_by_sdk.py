"""The SDK takes any number of texts: one job, whichever way they travel, and one array in their order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ondol import AsyncOndol, ItemErrors, Ondol
from ondol.client import embed_flow
from ondol.client import inputs as limits
from ondol.client.embed_flow import embed_request
from tests.bulk.client.conftest import CLASSIFIER, EMBEDDER
from tests.cluster import Cluster
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

MANY = 30_000
SAMPLE = [0, 1, 63, 9_999, 17_777, MANY - 1]
SAME = 1e-5
"""A text's vector is the same in any company, in float32."""


def _texts(num: int) -> Iterator[str]:
    return (f"text {number} of many" for number in range(num))


@pytest.fixture
def small_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit 100 kB goes as a file."""
    monkeypatch.setattr(limits, "MAX_BODY_BYTES", 100_000)


def _check_sample(client: Ondol, vectors: np.ndarray) -> None:
    texts = list(_texts(MANY))
    assert vectors.shape[0] == MANY and vectors.dtype == np.float32
    direct = client.embed([texts[index] for index in SAMPLE], model=EMBEDDER)
    np.testing.assert_allclose(vectors[SAMPLE], direct, atol=SAME)


def test_many_texts_in_one_body_are_one_job_that_tells_its_progress(client: Ondol) -> None:
    told: list[tuple[int, int]] = []
    request = embed_request(list(_texts(MANY)), EMBEDDER, {})
    before = {job.id for job in client.jobs.list()}
    outcome = client.run(embed_flow.embed(request, client.policy, lambda done, total: told.append((done, total))))
    assert not outcome.errors
    _check_sample(client, outcome.vectors)
    [job] = [job for job in client.jobs.list() if job.id not in before]
    assert job.progress is not None and (job.progress.done, job.progress.total) == (MANY, MANY)
    assert told[-1] == (MANY, MANY) and told == sorted(told)
    np.testing.assert_array_equal(job.vectors(), outcome.vectors)


def test_many_texts_of_an_iterator_travel_as_a_file_that_is_gone_afterwards(client: Ondol, small_bodies: None) -> None:
    _check_sample(client, client.embed(_texts(MANY), model=EMBEDDER))
    [job] = client.jobs.list(limit=1)
    assert job.raw["input_file"] and job.priority == "bulk"
    assert "inputs.jsonl" not in [file.filename for file in client.files.list()]


def test_inputs_that_fail_are_named_by_their_place_among_all(client: Ondol, small_bodies: None) -> None:
    texts = list(_texts(8_000))
    texts[4_321] = ""
    with pytest.raises(ItemErrors) as caught:
        client.embed(texts, model=EMBEDDER)
    assert list(caught.value.errors) == [4_321]
    partial = caught.value.partial
    assert np.flatnonzero(np.isnan(partial).any(axis=1)).tolist() == [4_321]
    np.testing.assert_allclose(partial[4_999], client.embed(texts[4_999], model=EMBEDDER), atol=SAME)


def test_labels_of_many_texts_and_pairs_come_in_order(client: Ondol, small_bodies: None) -> None:
    texts = list(_texts(4_000))
    labels = client.classify(texts, model=CLASSIFIER, top_k=1)
    assert len(labels) == 4_000
    [alone] = client.classify(texts[3_210], model=CLASSIFIER, top_k=1)
    assert labels[3_210][0].label == alone.label
    pairs = [(text, "and another") for text in texts]
    of_pairs = client.classify(pairs, model=CLASSIFIER)
    assert of_pairs[77][0].score == pytest.approx(client.classify(pairs[77:78], model=CLASSIFIER)[0][0].score, abs=1e-4)


def test_the_async_client_does_the_same(cluster: Cluster, client: Ondol, small_bodies: None, tmp_path: Path) -> None:
    async def run() -> tuple[np.ndarray, Path]:
        async with AsyncOndol(cluster.url) as awaiting:
            vectors = await awaiting.embed(_texts(6_000), model=EMBEDDER)
            job = await awaiting.jobs.create("embedding", model=EMBEDDER, input=["a", "b"])
            return vectors, await job.download(tmp_path / "two.npy")

    vectors, path = asyncio.run(run())
    np.testing.assert_allclose(vectors[5_999], client.embed("text 5999 of many", model=EMBEDDER), atol=SAME)
    assert np.load(path).shape == (2, vectors.shape[1])


def test_a_local_file_becomes_a_job_whose_result_is_saved_in_each_format(client: Ondol, tmp_path: Path) -> None:
    source = tmp_path / "rooms.csv"
    rows = [f"r-{number},room {number}" for number in range(3_000)]
    source.write_text("key,words\n" + "\n".join(rows) + "\n", encoding="utf-8")
    columns = {"text": "words", "id": "key"}
    job = client.jobs.create("embedding", model=EMBEDDER, input_file=source, input_columns=columns)
    table = pq.read_table(job.download(tmp_path / "rooms.parquet"))
    assert table.column("id").to_pylist() == [f"r-{number}" for number in range(3_000)]
    vectors = np.load(job.download(tmp_path / "rooms.npy"))
    lines = job.download(tmp_path / "rooms.out", "jsonl").read_text(encoding="utf-8").splitlines()
    assert vectors.shape[0] == len(lines) == 3_000
    assert '"id":"r-2999"' in lines[-1]
    np.testing.assert_array_equal(job.vectors(), vectors)


def test_what_a_cancelled_job_had_done_can_be_had(client: Ondol, tmp_path: Path) -> None:
    job = client.jobs.create("embedding", model=EMBEDDER, input=list(_texts(MANY)))
    wait_until(
        lambda: (progress := job.refresh().progress) and progress.done, within_s=60, what="the first shard to be done"
    )
    assert job.cancel().status == "cancelled"
    lines = job.download(tmp_path / "part.jsonl").read_text(encoding="utf-8").splitlines()
    num_cancelled = sum('"code":"cancelled"' in line for line in lines)
    assert len(lines) == MANY and 0 < num_cancelled < MANY
