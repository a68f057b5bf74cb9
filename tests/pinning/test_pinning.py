"""A device is a set of cores, kept by every process and thread of its worker, and never shared with another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.pinning.conftest import MODEL, Pair, device_of

pytestmark = pytest.mark.integration

WORKER_LIMIT_MB = 140
API_LIMIT_MB = 200


def cores_of(process: psutil.Process) -> set[int]:
    """The cores that every thread of the process keeps to; AssertionError if they differ."""
    lists = {
        line.split()[1]
        for task in Path(f"/proc/{process.pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if line.startswith("Cpus_allowed_list:")
    }
    assert len(lists) == 1, lists
    return parse_cores(lists.pop())


def parse_cores(text: str) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def test_every_thread_of_a_device_keeps_to_its_cores(pair: Pair) -> None:
    wanted = {name: parse_cores(worker.environ()["ONDOL_CORES"]) for name, worker in pair.workers.items()}
    assert set(wanted) == {"cpu:0", "cpu:1"}
    assert not wanted["cpu:0"] & wanted["cpu:1"]
    for name, worker in pair.workers.items():
        assert cores_of(worker) == wanted[name]
        assert cores_of(device_of(worker)) == wanted[name]


def test_the_device_process_says_what_it_was_given(pair: Pair) -> None:
    for name, worker in pair.workers.items():
        events = pair.ondol.log_events(f"worker-{name.replace(':', '')}", "device.up")
        assert events
        for ready in events:
            assert (ready["device"], ready["threads"]) == (name, 1)
            assert ready["cores"] == [int(worker.environ()["ONDOL_CORES"])]


def test_both_devices_serve_jobs_and_agree(pair: Pair) -> None:
    """More than one device's window holds: a short backlog stays where the model is warm."""
    jobs = [{"kind": "embedding", "model": MODEL, "input": "the same text"} for _ in range(1_000)]
    answers = [pair.ondol.http.post("/v1/jobs/batch", json={"jobs": jobs}).raise_for_status().json() for _ in range(2)]
    done = [pair.ondol.wait(job["id"]) for answer in answers for job in answer["data"]]
    assert {job["status"] for job in done} == {"succeeded"}
    urls = {job["worker"].partition("@")[0]: job["result_url"] for job in done}
    assert set(urls) == {"cpu0", "cpu1"}
    vectors = [pair.ondol.http.get(url).json()["data"][0]["output"] for url in urls.values()]
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=0, atol=1e-5)  # batches of other sizes


def test_processes_are_small_before_they_serve(pair: Pair) -> None:
    assert max(pair.worker_mb) <= WORKER_LIMIT_MB
    assert pair.api_mb <= API_LIMIT_MB
    for number in (0, 1):
        [up] = pair.ondol.log_events(f"worker-cpu{number}", "worker.up")
        assert up["resident_mb"] <= WORKER_LIMIT_MB
