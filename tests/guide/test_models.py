"""How models come into the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from ondol import JobFailed, NoSuchThing, Ondol
from ondol.demo.run import ENGLISH
from ondol.demo.similarity import run_similarity
from ondol.demo.texts import read_pairs
from tests.tiny_models import make_tiny_model

pytestmark = pytest.mark.integration


def test_a_folder_becomes_the_next_version_of_a_name(client: Ondol, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "tiny")
    for number in (1, 2):
        job = client.models.import_(folder, "guide-tiny").wait(timeout_s=120)
        assert job.status == "succeeded", job.error
        assert job.result().model == f"guide-tiny:{number}"
    assert client.models.get("guide-tiny").raw["version"] == "guide-tiny:1"  # the alias moves only on request
    assert client.embed("warm", model="guide-tiny:2").ndim == 1


def test_a_folder_that_is_no_model_is_refused_with_the_reason(client: Ondol, tmp_path: Path) -> None:
    job = client.models.import_(tmp_path, "guide-nothing").wait(timeout_s=60)
    with pytest.raises(JobFailed, match=r"config\.json"):
        job.result()
    with pytest.raises(NoSuchThing):
        client.models.get("guide-nothing")


def test_a_folder_that_the_worker_does_not_have_is_named_with_the_worker(client: Ondol, tmp_path: Path) -> None:
    job = client.models.import_(tmp_path / "elsewhere", "guide-nothing").wait(timeout_s=60)
    with pytest.raises(
        JobFailed, match=rf"the worker cpu0@\S+ has no folder {tmp_path}/elsewhere, or none that it may"
    ):
        job.result()


def test_the_default_model_scores_on_real_sentences_as_it_should(client: Ondol) -> None:
    run = run_similarity(client, ENGLISH, "en", read_pairs("en"))
    assert run.correlation == pytest.approx(0.908, abs=0.002)  # sentence-transformers' own figure on these pairs
