"""Memory of the GPU that runs out costs a halving, a context that is lost costs the device process and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.device_child import device_child, model_header, run_frame, vectors_of
from tests.equal_to_reference.engines import run_rows, vectors
from tests.gpu.on_cuda import DEVICE, cosines, make_engine, make_model, random_rows
from tests.tiny_models import make_tiny_model
from tests.tiny_specs import model_handle, model_spec_of, write_spec
from workers.device.engine import LoadRequest, ProbeRequest
from workers.device.fidelity import MIN_COSINE, MIN_MEAN_COSINE

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

_MIB = 2**20


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of 512, so that a few thousand tokens are megabytes."""
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "wide", hidden=512, config={"initializer_range": 0.02})
    return write_spec(folder, model_spec_of(folder))


@pytest.fixture
def room_for_mib() -> Iterator[None]:
    """A limit that torch's own allocator keeps to; taken away after the test."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def _leave_mib(num_mib: int) -> None:
    """From now on this process may take so many MiB more than it holds."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(DEVICE) + num_mib * _MIB) / total)


@pytest.mark.usefixtures("room_for_mib")
def test_a_batch_that_does_not_fit_is_halved_and_has_the_same_vectors(wide: Path) -> None:
    engine, rows = make_engine(), random_rows(1, num_rows=400)
    whole = vectors(engine, wide, rows)
    _leave_mib(64)
    result = run_rows(engine, wide, rows)
    assert result.num_halvings > 0
    assert not result.row_errors
    assert result.max_batch_tokens < sum(map(len, rows)), "the budget has learned"
    np.testing.assert_allclose(result.vectors, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_a_lost_context_ends_the_process_with_the_batch_unanswered(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "lying")
    write_spec(folder, model_spec_of(folder, type_vocab_size=9))  # the model knows two: a device-side assert
    model = model_header(model_handle(folder))
    with device_child(device="cuda:0") as child:
        header, body = child.ask(*run_frame(1, model, [[7, 8, 9]]))
        assert vectors_of(header, body).shape == (1, 32)
        frame, ids = run_frame(2, model, [[7, 8, 9]])
        types = np.full(3, 8, dtype="<i4").tobytes()
        with pytest.raises((EOFError, ConnectionError)):
            child.ask(frame | {"has_type_ids": True}, ids + types)
        assert child.process.wait(30) == 1
    with device_child(device="cuda:0") as successor:
        header, body = successor.ask(*run_frame(3, model, [[7, 8, 9]]))
        assert vectors_of(header, body).shape == (1, 32)


def test_auto_is_a_format_that_is_faithful_here(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "auto", "bert")
    probed = make_engine().probe(ProbeRequest(model_handle(folder)))
    assert probed.device_kind.startswith("cuda-sm")
    assert probed.is_packed
    for dtype, fidelity in probed.fidelity.items():
        rows = random_rows(3)
        near = cosines(vectors(make_engine(), folder, rows, dtype=dtype), vectors(make_engine(), folder, rows))
        assert abs(near.mean() - fidelity.mean_cosine) < 0.005
    assert probed.dtype != "float32", "one of the fast formats is good for it"
    chosen = probed.fidelity[probed.dtype]
    assert chosen.mean_cosine >= MIN_MEAN_COSINE
    assert chosen.min_cosine >= MIN_COSINE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_token_budget_is_measured_at_load(wide: Path, dtype: str) -> None:
    loaded = make_engine(measures_budget=True).load(LoadRequest(model_handle(wide, dtype), is_pinned=False))
    assert loaded.max_batch_tokens is not None
    assert loaded.max_batch_tokens >= 4_096, "a GPU is idle with less"
    assert loaded.size_bytes >= sum(file.stat().st_size for file in wide.glob("*.safetensors")) // 4
