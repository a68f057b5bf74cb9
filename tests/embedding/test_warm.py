"""Models are loaded and run once, stay warm, make room for each other, and are refused when they cannot fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.embedding.reference import assert_equal, states, token_ids
from tests.served import Served, unit
from tests.tiny_models import make_tiny_model
from tests.waiting import wait_until
from workers.offline_models import MINILM, offline_model_folders

pytestmark = pytest.mark.integration

POOL_MB = 64
TEXTS = ["the fire burns below", "온돌"]
TIMES = ("x-queue-time", "x-tokenization-time", "x-inference-time", "x-total-time")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models of about 41 MB, of which the pool holds one, and one that it cannot hold."""
    place = tmp_path_factory.mktemp("large")
    sizes = {"one": 256, "two": 256, "huge": 512}
    return {
        name: make_tiny_model(place / name, hidden=hidden, layers=1, vocab=40_000, seed=seed)
        for seed, (name, hidden) in enumerate(sizes.items())
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Iterator[Served]:
    """An Ondol whose device has little room, and one thread for all of its cores."""
    settings = {"ONDOL_DEVICE_MEMORY_MB": str(POOL_MB), "ONDOL_IMPORT_DEFAULT_MODEL": "false"}
    ondol = Served(tmp_path_factory.mktemp("small"), ONDOL_DEVICES="auto", ONDOL_THREADS="1", **settings)
    ondol.publish_all({name: folders[name] for name in ("one", "two")})
    yield ondol
    ondol.close()


def warm_models(ondol: Served) -> list[str]:
    [worker] = ondol.workers()
    found: list[str] = worker["warm"]
    return found


def num_loads(ondol: Served) -> int:
    return len(ondol.log_events("worker-cpu0", "model.loaded"))


def load_s(job: dict[str, Any]) -> float:
    seconds: float = job["timings"]["load_s"]
    return seconds


def test_a_model_is_loaded_once_and_shown_as_warm(small: Served) -> None:
    small.call("two", "make room")  # whatever ran before: `one` is cold now
    before = num_loads(small)
    first = small.call("one", TEXTS)
    second = small.call("one", TEXTS)
    assert num_loads(small) == before + 1
    for answer in (first, second):
        times = {name: float(answer.headers[name]) for name in TIMES}
        assert times["x-inference-time"] > 0
        assert times["x-total-time"] >= times["x-inference-time"] + times["x-tokenization-time"]
    wait_until(lambda: warm_models(small) == ["one:1"], within_s=5, what="the warm model to be shown")


def test_models_that_do_not_fit_together_take_turns_and_stay_right(small: Served, folders: dict[str, Path]) -> None:
    expected = {
        name: unit(np.stack([states(folders[name], token_ids(folders[name], text)).mean(axis=0) for text in TEXTS]))
        for name in ("one", "two")
    }
    before = num_loads(small)
    for _ in range(2):
        for name, vectors in expected.items():
            assert_equal(small.call_vectors(name, TEXTS), vectors)
            assert_equal(small.embed(name, TEXTS).vectors, vectors)
            wait_until(lambda n=name: warm_models(small) == [f"{n}:1"], within_s=5, what=f"only {name} to be warm")  # type: ignore[misc]  # bound at definition
    assert num_loads(small) - before in (3, 4)  # the first turn may find its model warm


def assert_sizes_are_named(error: dict[str, Any]) -> None:
    assert error["code"] == "model_too_large"
    assert f"{POOL_MB}.0 MiB" in error["message"]
    assert error["message"].count("MiB") >= 2


def test_a_model_that_cannot_fit_is_refused_at_import_with_the_sizes(small: Served) -> None:
    stored = set((small.data_dir / "store").rglob("*"))
    job = small.wait(small.start_import(offline_model_folders()[MINILM], "too-large"))
    assert job["status"] == "failed"
    assert_sizes_are_named(job["error"])
    assert small.http.get("/v1/models/too-large").status_code == 404
    assert set((small.data_dir / "store").rglob("*")) == stored
    assert [path for path in (small.data_dir / "staging").rglob("*") if path.name.startswith("job_")] == []


def test_a_model_that_this_device_cannot_hold_is_refused_when_it_is_asked_for(
    small: Served, folders: dict[str, Path]
) -> None:
    small.publish_all({"huge": folders["huge"]})  # as a larger device of the same house would have
    answer: httpx.Response = small.call("huge", "a")
    assert answer.is_error
    assert_sizes_are_named(answer.json()["error"])
    job = small.wait(small.submit("huge", "a").json()["id"])
    assert job["status"] == "failed"
    assert_sizes_are_named(job["error"])
    assert small.call("one", "a").status_code == 200


def test_a_cold_job_says_how_long_the_load_took(small: Served) -> None:
    small.call("two", "make room")
    cold, warm = (small.embed("one", "a").job for _ in range(2))
    assert load_s(cold) > load_s(warm)


def test_threads_are_what_was_asked_for_not_one_a_core(small: Served) -> None:
    [ready] = small.log_events("worker-cpu0", "device.up")
    assert ready["threads"] == 1
    assert ready["cores"] == sorted(os.sched_getaffinity(0))
