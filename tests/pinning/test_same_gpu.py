"""A fine-tune and the models served on `cuda:0` are on the same GPU, whatever a scheduler shows of the host's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from workers.child_environment import device_environment
from workers.device.arguments import DeviceArguments
from workers.device.pinning import set_pinned_environment
from workers.training.child_process import trainer_environment

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]
_TRAINER = """
import json, os, sys
from types import SimpleNamespace
from workers.training.child.__main__ import _compose
device = _compose(SimpleNamespace(cores=(), device=sys.argv[1], threads=1))
print(json.dumps([str(device), dict(os.environ)]))
"""


def shown_to_serving(device: str) -> str:
    """What a device process of this host sees once it has pinned itself."""
    environ = device_environment()
    set_pinned_environment(
        DeviceArguments(fd=3, device=device, cores=(0,), threads=1, memory_bytes=1, batch_tokens=1), environ
    )
    return environ["CUDA_VISIBLE_DEVICES"]


def training_on(device: str) -> tuple[str, dict[str, str]]:
    """The device that a trainer computes on, and its environment, once it has pinned itself."""
    command = [sys.executable, "-c", _TRAINER, device]
    environment = trainer_environment(1, device)
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    name, environ = json.loads(ended.stdout)
    return name, environ


@pytest.mark.parametrize(
    ("visible", "device", "shown"),
    [
        ("2,3", "cuda:0", "2"),
        ("2,3", "cuda:1", "3"),
        ("GPU-ab12", "cuda:0", "GPU-ab12"),
        (None, "cuda:1", "1"),
    ],
)
def test_training_and_serving_see_the_same_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, device: str, shown: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    name, environ = training_on(device)
    assert environ["CUDA_VISIBLE_DEVICES"] == shown_to_serving(device) == shown
    assert name == "cuda:0", "the one that is shown"


def test_training_on_a_cpu_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    name, environ = training_on("cpu:0")
    assert (name, environ["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")


def test_a_trainer_gets_all_tuning_of_its_libraries_no_secret_and_a_reproducible_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuning = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    for name, value in (tuning | {"ONDOL_REDIS_PASSWORD": "hunter2", "AWS_SECRET_ACCESS_KEY": "hunter2"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    given = trainer_environment(3, "cuda:0")
    assert given.items() >= tuning.items() and "hunter2" not in str(given)
    fixed = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "3"}
    assert given.items() >= fixed.items()
