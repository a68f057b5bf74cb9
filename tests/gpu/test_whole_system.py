"""`ondol up` on one GPU: jobs, calls and a fine-tune share it, and whoever dies on it is replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from tokenizers import Tokenizer

from ondol.contract.model_spec import SPEC_FILE
from tests.equal_to_reference.engines import make_engine as make_cpu_engine
from tests.equal_to_reference.engines import vectors
from tests.publishing import import_here, publish_folder
from tests.served import Served, unit
from tests.tiny_models import LABELS, TAGS, make_tiny_head, make_tiny_model
from tests.training_jobs.client import TrainingClient, rows_of_weather
from tests.waiting import wait_until
from workers.training.child.checkpoints import STATE_FILE

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240)]

TEXTS = [f"The fire of day {i} burns below and the whole house stays warm" for i in range(200)]
SETTINGS = {
    "ONDOL_DEVICES": "cuda:0",
    "ONDOL_TRAIN": "true",
    "ONDOL_DTYPE": "float32",
    "ONDOL_IMPORT_DEFAULT_MODEL": "false",
    "ONDOL_LEASE_S": "3",
    "ONDOL_RENEW_S": "0.5",
    "ONDOL_RUNG_UNCLAIMED_S": "2",
}
HALF_COSINE = 0.999


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One GPU that serves and trains, with tiny models."""
    folder = tmp_path_factory.mktemp("gpu-house")
    started = Served(folder, **SETTINGS)
    sources = tmp_path_factory.mktemp("sources")
    started.publish_all(
        {
            "tiny": make_tiny_model(sources / "tiny"),
            "labels": make_tiny_head(sources / "labels"),
            "tags": make_tiny_head(sources / "tags", task="token-classification"),
        }
    )
    yield started
    started.close()


def _device_of(house: Served) -> psutil.Process:
    """The device process of the worker, once there is one."""

    def find() -> psutil.Process | None:
        children = psutil.Process(house.stack.pid).children(recursive=True)
        return next((child for child in children if _has_module(child, "workers.device")), None)

    found = wait_until(find, within_s=60, what="a device process")
    assert found is not None
    return found


def _has_module(process: psutil.Process, module: str) -> bool:
    try:
        return module in process.cmdline()
    except psutil.Error:
        return False


def test_a_job_has_the_vectors_of_a_cpu(house: Served) -> None:

    finished = house.embed("tiny", TEXTS)
    folder = house.data_dir.parent / "published" / "tiny"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = [encoded.ids for encoded in tokenizer.encode_batch(TEXTS)]
    expected = unit(vectors(make_cpu_engine(), folder, rows))
    np.testing.assert_allclose(finished.vectors, expected, rtol=0, atol=1e-4)
    assert finished.job["worker"].startswith("cuda0@")
    kinds = {one["role"]: (one["device"], one["device_kind"]) for one in house.workers()}
    major, minor = torch.cuda.get_device_capability(0)
    assert kinds["infer"] == ("cuda:0", f"cuda-sm{major}{minor}")


def test_half_precision_is_asked_for_by_option(house: Served) -> None:
    exact = house.embed("tiny", TEXTS).vectors
    for dtype in ("bfloat16", "float16", "auto"):
        found = house.embed("tiny", TEXTS, dtype=dtype)
        assert (found.vectors * exact).sum(axis=1).min() > HALF_COSINE, dtype
        assert found.result["dtype"] in ("bfloat16", "float16", "float32")


def test_classes_and_entities_come_from_the_gpu(house: Served) -> None:
    for model, names in (("labels", LABELS), ("tags", TAGS)):
        kind = "text-classification" if model == "labels" else "token-classification"
        body = {"kind": kind, "model": model, "input": TEXTS[:5]}
        job = house.wait(house.http.post("/v1/jobs", json=body).raise_for_status().json()["id"])
        assert job["status"] == "succeeded", job["error"]
        items = house.http.get(f"/v1/jobs/{job['id']}/result").json()["data"]
        assert len(items) == 5
        found = {one.get("label", one.get("entity_group")) for item in items for one in item["output"]}
        assert found <= set(names) | {name.partition("-")[2] for name in names}


def test_only_its_own_gpu_is_visible_to_the_device_process(house: Served) -> None:
    house.embed("tiny", "warm")
    assert _device_of(house).environ().get("CUDA_VISIBLE_DEVICES", "0") == "0"
    worker = house.processes("workers.main")[0]
    assert not [m for m in worker.memory_maps() if "libcuda" in m.path], "the worker itself holds no GPU"


def test_device_memory_is_the_gpus(house: Served) -> None:
    house.embed("tiny", "warm")
    free, total = torch.cuda.mem_get_info(0)
    limit = house.log_events("worker-cuda0", "device.up")[-1]["memory_bytes"]
    assert total // 10 < limit < total, "a share of the GPU, not of the host"
    loaded = house.log_events("worker-cuda0", "model.loaded")
    assert loaded
    assert 0 < sum(one["size_bytes"] for one in loaded[-1:]) < total - free


def test_a_fine_tune_runs_beside_calls_and_is_served_by_the_same_gpu(house: Served) -> None:
    stop, statuses = threading.Event(), []

    def call() -> None:
        while not stop.is_set():
            statuses.append(house.call("tiny", "beside the training").status_code)

    caller = threading.Thread(target=call)
    with TrainingClient(house.url) as client:
        train_file = client.upload(rows_of_weather(600))
        caller.start()
        try:
            hyper = {"num_train_epochs": 4, "learning_rate": 0.003, "per_device_train_batch_size": 8}
            job_id = client.fine_tune(train_file, alias="production", hyperparameters=hyper)
            client.wait(job_id, "succeeded")
        finally:
            stop.set()
            caller.join()
        result = client.result(job_id)
        assert result["metrics"]["accuracy"] > 0.9
        answer = client.http.post(
            "/models/weather@production", json={"inputs": "the snow of day 3 and the ice", "parameters": {"top_k": 1}}
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()[0][0]["label"] == "cold"
    assert set(statuses) == {200}
    assert len(statuses) > 10
    states = list((house.data_dir / "store" / "checkpoints" / job_id).rglob(STATE_FILE))
    assert states
    conditions = json.loads(states[0].read_bytes())["conditions"]
    assert conditions["dtype"] == "bfloat16", "a GPU trains under autocast"
    assert conditions["device_kind"].startswith("cuda-sm")


def test_a_killed_worker_costs_no_job(house: Served) -> None:
    ids = [house.submit("tiny", TEXTS).json()["id"] for _ in range(20)]
    [worker] = house.processes("workers.main")
    worker.send_signal(signal.SIGKILL)
    for job_id in ids:
        job = house.wait(job_id)
        assert job["status"] == "succeeded", job["error"]
        items = house.http.get(f"/v1/jobs/{job_id}/result").json()["data"]
        assert [item["index"] for item in items] == list(range(len(TEXTS)))
        events = house.http.get(f"/v1/jobs/{job_id}/events").json()["data"]
        assert [e["data"]["to"] for e in events if e["type"] == "state"].count("succeeded") == 1


def test_a_lost_context_is_replaced_and_only_the_guilty_text_fails(house: Served, tmp_path: Path) -> None:
    _publish_lying_model(house, tmp_path)
    assert house.embed("lying", "short").job["status"] == "succeeded"
    device = _device_of(house)
    guilty = house.submit("lying", [" ".join(["fire"] * 150)])
    job = house.wait(guilty.json()["id"])
    assert job["status"] == "failed" and job["error"]["code"] == "worker_lost", job
    assert house.embed("tiny", TEXTS[:3]).job["status"] == "succeeded"
    assert _device_of(house).pid != device.pid
    assert len(house.log_events("worker-cuda0", "device.lost")) == 3, "three deaths of the guilty text alone"


def _publish_lying_model(house: Served, folder: Path) -> None:
    """A model whose `ondol.json` promises more positions than it has: long texts end in a device-side assert."""
    # Its positions are enough for what a load tries.
    source = make_tiny_model(folder / "source", config={"max_position_embeddings": 128})
    import_here(source, folder / "lying")
    spec = json.loads((folder / "lying" / SPEC_FILE).read_bytes())
    (folder / "lying" / SPEC_FILE).write_text(json.dumps(spec | {"max_positions": 512, "max_length": 512}))
    store_url, database_url = f"file://{house.data_dir / 'store'}", f"sqlite:///{house.data_dir / 'ondol.db'}"
    publish_folder(folder / "lying", "lying", store_url=store_url, database_url=database_url)


def test_doctor_names_the_gpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ondol.cli.main", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"ONDOL_DATA_DIR": str(tmp_path / "data"), "ONDOL_PORT": "0", "ONDOL_FLOWER_PORT": "0"},
    )
    found: dict[str, Any] = {one["subject"]: one for one in json.loads(done.stdout)["data"]}
    name = torch.cuda.get_device_name(0)
    assert name in json.dumps(found["devices"]), found["devices"]
