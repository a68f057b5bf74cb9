"""What a device's memory holds is measured on the device, and a model that cannot run there is not left in its pool."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

import pytest
import torch

from ondol.contract.errors import OutOfDeviceMemory
from ondol.settings import WorkerSettings
from tests.equal_to_reference.engines import make_engine, run_rows
from tests.tiny_models import make_tiny_model
from tests.tiny_specs import model_handle, model_spec_of, write_spec
from workers.device import torch_engine
from workers.device.engine import LoadRequest, ModelHandle
from workers.device.loading import LoadedModel, load_model
from workers.device.pool_limit import gpu_pool_bytes
from workers.device.torch_engine import TorchEngine
from workers.device.warming import Budgets
from workers.memory import usable_bytes
from workers.worker_process import device_arguments

pytestmark = pytest.mark.unit

GIB = 2**30


@pytest.fixture(scope="module")
def handles(tmp_path_factory: pytest.TempPathFactory) -> list[ModelHandle]:
    """Three tiny models."""
    root = tmp_path_factory.mktemp("models")
    folders = [make_tiny_model(root / name, seed=seed) for seed, name in enumerate("abc")]
    return [model_handle(write_spec(folder, model_spec_of(folder))) for folder in folders]


def memory_mb(tmp_path: Path, device: str, **settings: object) -> int | None:
    """What the worker of a device tells its device process."""
    options = device_arguments(WorkerSettings(data_dir=tmp_path, device=device, **settings), (0,))  # type: ignore[arg-type]  # of several types
    return int(options[options.index("--memory-mb") + 1]) if "--memory-mb" in options else None


def test_a_gpu_is_told_nothing_of_the_hosts_memory(tmp_path: Path) -> None:
    assert memory_mb(tmp_path, "cuda:0") is None
    assert memory_mb(tmp_path, "cuda:0", device_memory_mb=9_000) == 9_000


def test_cpu_devices_share_half_of_the_host(tmp_path: Path) -> None:
    alone = memory_mb(tmp_path, "cpu:0")
    assert alone == usable_bytes() // 2 // 2**20
    assert memory_mb(tmp_path, "cpu:1", devices="cpu:2x1") in (alone // 2, alone // 2 - 1)
    assert memory_mb(tmp_path, "cpu:1", devices="cpu:2x1", device_memory_mb=700) == 700


def test_a_gpus_pool_leaves_room_for_batches_and_counts_what_others_hold() -> None:
    assert gpu_pool_bytes(24 * GIB, 24 * GIB) == int(24 * GIB * 0.7)
    assert gpu_pool_bytes(18 * GIB, 24 * GIB) == int(24 * GIB * 0.7) - 6 * GIB
    assert gpu_pool_bytes(4 * GIB, 24 * GIB) == 2 * GIB, "half of the rest, beside a neighbour that holds nearly all"


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/pod/box\n", {"pod/box/memory.max": "max", "pod/memory.max": "1073741824"}, GIB),
        ("0::/\n", {"memory.max": "2147483648\n"}, 2 * GIB),
        ("0::/pod/box\n", {"memory.max": "1073741824"}, GIB),
        ("9:cpu:/x\n4:memory:/pod/box\n0::/\n", {"memory/memory.limit_in_bytes": "1073741824"}, GIB),
        ("4:memory:/pod\n", {"memory/pod/memory.limit_in_bytes": str(2**63 - 4096)}, None),
        ("0::/\n", {}, None),
    ],
    ids=["v2 around us", "v2 container", "v2 of the host's names", "v1", "v1 without limit", "none"],
)
def test_a_containers_memory_is_its_limit(
    tmp_path: Path, own: str, limits: dict[str, str], expected: int | None
) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert usable_bytes(tmp_path / "own", tmp_path) == min(host, expected or host)


def keys_of(engine: TorchEngine) -> tuple[str, ...]:
    return engine._pool.keys


@pytest.mark.parametrize("is_pinned", [False, True])
def test_a_model_that_cannot_be_warmed_up_is_not_left_in_the_pool(
    handles: list[ModelHandle], monkeypatch: pytest.MonkeyPatch, *, is_pinned: bool
) -> None:
    engine, seen = make_engine(), list[weakref.ref[torch.nn.Module]]()

    def no_room(_budgets: Budgets, loaded: LoadedModel) -> None:
        seen.append(weakref.ref(loaded.model))
        raise OutOfDeviceMemory("full")

    with monkeypatch.context() as patch:
        patch.setattr(Budgets, "warm_up", no_room)
        with pytest.raises(OutOfDeviceMemory) as caught:
            engine.load(LoadRequest(handles[0], is_pinned=is_pinned))
        assert keys_of(engine) == () and engine._pool.used_bytes == 0
        gc.collect()
        assert seen[0]() is None, f"its memory is free, although {caught.value} is still held"
    assert engine.load(LoadRequest(handles[0], is_pinned=False)).load_s > 0


def test_models_make_room_when_the_device_is_full_before_the_pool_is(
    handles: list[ModelHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device with memory for two models, under a pool that would take thousands."""
    engine = make_engine()

    def load_if_there_is_room(handle: ModelHandle, spec: object, device: torch.device) -> LoadedModel:
        if len(keys_of(engine)) >= 2:
            raise OutOfDeviceMemory("full")
        return load_model(handle, spec, device)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(torch_engine, "load_model", load_if_there_is_room)
    for handle in handles[:2]:
        assert run_rows(engine, handle.path, [[2, 3]]).evicted == ()
    assert run_rows(engine, handles[2].path, [[2, 3]]).evicted == (handles[0].key,)
    assert keys_of(engine) == (handles[1].key, handles[2].key)


def test_pinned_models_stay_when_another_does_not_fit(
    handles: list[ModelHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    engine.load(LoadRequest(handles[0], is_pinned=True))

    def no_room(*_: object) -> LoadedModel:
        raise OutOfDeviceMemory("full")

    monkeypatch.setattr(torch_engine, "load_model", no_room)
    with pytest.raises(OutOfDeviceMemory):
        engine.load(LoadRequest(handles[1], is_pinned=False))
    assert keys_of(engine) == (handles[0].key,)
