"""A real device process keeps to its cores and threads, and never outlives its socket or its parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from ondol.contract.frames import receive_frame
from tests.device_child import (
    ANSWER_LIMIT_S,
    HASH_PROGRAM,
    REAL_PROGRAM,
    REPOSITORY,
    child_environment,
    device_child,
    device_options,
    model_header,
    run_frame,
    vectors_of,
)
from tests.tiny_models import make_tiny_model
from tests.tiny_specs import model_handle, model_spec_of, write_spec
from tests.waiting import wait_until
from workers.absent import UNUSED
from workers.device.arguments import DeviceArguments
from workers.device.pinning import pin, set_pinned_environment

MB = 1024 * 1024
ROW = 60
INTERMEDIATE = """
import subprocess, sys
child = subprocess.Popen(sys.argv[2:], pass_fds=[int(sys.argv[1])])
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    return write_spec(folder, model_spec_of(folder))


@pytest.mark.integration
def test_batches_of_ever_new_sizes_take_no_more_and_more_memory(tiny_folder: Path) -> None:
    """OneDNN keeps what it has compiled for a size, half a MB each, for as many as it is allowed to."""
    with device_child(REAL_PROGRAM) as child:
        handle = replace(model_handle(tiny_folder), dtype=child.ready["dtypes"][-1])
        process = psutil.Process(child.process.pid)
        rss = []
        for size in range(1, 601):
            rows = [[17] * min(ROW, size - start) for start in range(0, size, ROW)]
            answer, _ = child.ask(*run_frame(size, model_header(handle), rows))
            assert answer["op"] == "ran"
            rss.append(process.memory_info().rss)
    assert rss[-1] - rss[100] < 150 * MB, [value // MB for value in rss[::50]]


@pytest.mark.integration
def test_process_is_pinned_and_serves_and_ends_with_its_socket(tiny_folder: Path) -> None:
    core = sorted(os.sched_getaffinity(0))[-1]
    with device_child(REAL_PROGRAM, cores=[core]) as child:
        ready = child.ready
        assert (ready["op"], ready["device"], ready["pid"]) == ("ready", "cpu:0", child.process.pid)
        assert (ready["cores"], ready["threads"], ready["memory_bytes"]) == ([core], 1, 1024 * 1024**2)
        assert ready["device_kind"] in ("cpu", "cpu-bf16")
        assert ready["dtypes"][0] == "float32"
        assert os.sched_getaffinity(child.process.pid) == {core}
        assert os.getpgid(child.process.pid) == child.process.pid

        model = model_header(model_handle(tiny_folder))
        header, body = run_frame(1, model, [[2, 17, 40, 3], [2, 9, 3]])
        answer, vectors = child.ask(header, body)
        assert (answer["op"], answer["shape"], answer["num_padding"]) == ("ran", [2, 32], 0)
        assert answer["load_s"] > 0
        assert np.isfinite(vectors_of(answer, vectors)).all()
        # Reader, writer and device thread; the affinity holds for every one of them, those of OpenMP included.
        for task in Path(f"/proc/{child.process.pid}/task").iterdir():
            assert os.sched_getaffinity(int(task.name)) == {core}

        mapped = Path(f"/proc/{child.process.pid}/maps").read_text()
        assert "libtorch_cpu" in mapped
        assert not [name for name in UNUSED if f"/{name}/" in mapped], "what serving never uses is not loaded"

        answer, _ = child.ask({"op": "load", "id": 2, "model": model, "pinned": True})
        assert (answer["op"], answer["load_s"], answer["is_packed"], answer["why_padded"]) == (
            "loaded",
            0.0,
            True,
            None,
        )
        assert answer["size_bytes"] > 100_000
        answer, _ = child.ask({"op": "probe", "id": 3, "model": {**model, "key": "probe"}})
        assert answer["dtype"] in ready["dtypes"]
        assert answer["fidelity"]["float32"]["min_cosine"] == pytest.approx(1.0)

        answer, _ = child.ask({"op": "load", "id": 4, "model": {**model, "key": "x", "path": "/nowhere"}})
        assert (answer["op"], answer["error"]["code"], answer["is_retryable"]) == ("failed", "store_unavailable", True)
        child.sock.close()
        assert child.process.wait(timeout=20) == 0


@pytest.mark.chaos
@pytest.mark.parametrize("program", [HASH_PROGRAM, REAL_PROGRAM], ids=["hash", "real"])
def test_process_ends_when_its_parent_is_killed_while_the_socket_stays_open(program: tuple[str, ...]) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(ANSWER_LIMIT_S)
    fd = str(theirs.fileno())
    parent = subprocess.Popen(
        [sys.executable, "-c", INTERMEDIATE, fd, *program, *device_options(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        env=child_environment(),
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert receive_frame(ours) is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: _has_ended(pid), within_s=10, what="the device process to follow its parent")
    ours.close()
    theirs.close()


def _has_ended(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _arguments(device: str) -> DeviceArguments:
    return DeviceArguments(fd=3, device=device, cores=(0,), threads=3, memory_bytes=1, batch_tokens=1)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [("cpu:0", None, ""), ("cuda:1", None, "1"), ("cuda:1", "4,7", "7"), ("cuda:0", "GPU-ab12", "GPU-ab12")],
)
def test_only_the_devices_own_gpu_is_visible(device: str, visible: str | None, expected: str) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    set_pinned_environment(_arguments(device), environ)
    assert environ["CUDA_VISIBLE_DEVICES"] == expected
    assert environ["OMP_NUM_THREADS"] == environ["MKL_NUM_THREADS"] == "3"
    assert environ["TOKENIZERS_PARALLELISM"] == "false"


@pytest.mark.unit
def test_sizes_of_caches_are_ours_unless_somebody_chose_them() -> None:
    environ = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "2048"}
    set_pinned_environment(_arguments("cpu:0"), environ)
    assert (environ["LRU_CACHE_CAPACITY"], environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) == ("1", "2048")


@pytest.mark.unit
def test_pinning_after_torch_is_refused() -> None:
    pytest.importorskip("torch")
    with pytest.raises(RuntimeError, match="before pinning"):
        pin(_arguments("cpu:0"))
