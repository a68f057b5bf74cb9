"""The warm pool of a GPU is bounded by the GPU: its own memory, and not that of the host around it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.device_child import device_child
from tests.gpu.on_cuda import DEVICE, make_engine
from tests.tiny_models import make_tiny_model
from tests.tiny_specs import model_handle, model_spec_of, write_spec
from workers.device.engine import LoadRequest, ModelHandle
from workers.device.pool_limit import GPU_SHARE

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

_MIB = 2**20


@pytest.fixture(scope="module")
def handles(tmp_path_factory: pytest.TempPathFactory) -> list[ModelHandle]:
    """Three models of some forty megabytes."""
    root = tmp_path_factory.mktemp("models")
    folders = [make_tiny_model(root / name, seed=seed, hidden=1024) for seed, name in enumerate("abc")]
    return [model_handle(write_spec(folder, model_spec_of(folder))) for folder in folders]


@pytest.fixture
def free_again() -> Iterator[None]:
    """The limit of torch's allocator is taken away after the test."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_a_device_process_that_is_told_no_bound_measures_the_gpu() -> None:
    with device_child(device="cuda:0", memory_mb=None) as child:
        found = int(child.ready["memory_bytes"])
    assert child.process.returncode == 0
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    assert 0.2 * total < found < GPU_SHARE * total, "what this process holds of it is taken off"


@pytest.mark.usefixtures("free_again")
def test_a_third_model_makes_the_first_go_when_the_gpu_is_full(handles: list[ModelHandle]) -> None:
    engine = make_engine(memory_bytes=2**40, batch_tokens=64)
    first = engine.load(LoadRequest(handles[0], is_pinned=False))
    torch.cuda.empty_cache()
    held, total = torch.cuda.memory_reserved(DEVICE), torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((held + int(1.8 * first.size_bytes)) / total)
    assert engine.load(LoadRequest(handles[1], is_pinned=False)).evicted == ()
    assert engine.load(LoadRequest(handles[2], is_pinned=False)).evicted == (handles[0].key,)
    assert engine.load(LoadRequest(handles[1], is_pinned=False)).load_s == 0
