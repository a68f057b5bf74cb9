"""One running Ondol of two devices with a core each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest

from tests.served import Served
from tests.tiny_models import make_tiny_model

MODEL = "pinned"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two devices of one core each, and the resident MB of worker and api processes before anything was served."""

    ondol: Served
    worker_mb: list[float]
    api_mb: float

    @property
    def workers(self) -> dict[str, psutil.Process]:
        """The worker processes, by device."""
        return {process.environ()["ONDOL_DEVICE"]: process for process in self.ondol.processes("workers.main")}


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two devices need two cores")
    settings = {"ONDOL_DEVICES": "cpu:2x1", "ONDOL_IMPORT_DEFAULT_MODEL": "false"}
    ondol = Served(tmp_path_factory.mktemp("pair"), **settings)
    worker_mb = [_resident_mb(process) for process in ondol.processes("workers.main")]
    found = Pair(ondol, worker_mb, _resident_mb(ondol.processes("api.main")[0]))
    ondol.publish_all({MODEL: make_tiny_model(tmp_path_factory.mktemp("folders") / MODEL)})
    yield found
    ondol.close()


def device_of(worker: psutil.Process) -> psutil.Process:
    """The device process of a worker."""
    [device] = [child for child in worker.children() if "workers.device" in child.cmdline()]
    return device


def _resident_mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 2**20
