"""A batch that runs out of memory is halved until one row is left, and the budget learns from it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondol.contract.errors import DeviceError, DeviceLost, OutOfDeviceMemory
from tests.device_programs import Faults, HashEngine, hash_vector
from workers.device.engine import ModelHandle, RunRequest, RunSpec
from workers.device.halving import TokenBudget, packed_cost, padded_cost, run_halving

pytestmark = pytest.mark.unit


def _run(lengths: list[int], fits: int, budget: TokenBudget | None = None) -> tuple[list[int], set[int], list[int]]:
    """Rows that came through in order, rows that failed, and the tokens of every pass tried."""
    tried: list[int] = []

    def forward(start: int, end: int) -> range:
        tokens = sum(lengths[start:end])
        tried.append(tokens)
        if tokens > fits:
            raise OutOfDeviceMemory("full")
        return range(start, end)

    run = run_halving(lengths, forward, budget=budget or TokenBudget(1024), cost_of=packed_cost, release=lambda: None)
    return [row for _, _, piece in run.pieces for row in piece], set(run.errors), tried


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 200))
def test_every_row_that_fits_alone_comes_through_once_and_in_order(lengths: list[int], fits: int) -> None:
    rows, failed, _ = _run(lengths, fits)
    assert rows == [row for row, length in enumerate(lengths) if length <= fits]
    assert failed == {row for row, length in enumerate(lengths) if length > fits}


def test_learned_budget_cuts_the_next_batch_before_it_runs_out_of_memory() -> None:
    budget = TokenBudget(1024)
    _run([10] * 16, fits=40, budget=budget)
    assert budget.max_batch_tokens == 40
    rows, failed, tried = _run([10] * 16, fits=40, budget=budget)
    assert rows == list(range(16))
    assert not failed
    assert tried == [40] * 4


def test_budget_grows_back_when_passes_near_it_succeed() -> None:
    budget = TokenBudget(100)
    budget.ran_out(100)
    assert budget.max_batch_tokens == 50
    for _ in range(64):
        budget.succeeded(20)
    assert budget.max_batch_tokens == 50, "small passes prove nothing"
    for _ in range(64 * 4):
        budget.succeeded(50)
    assert budget.max_batch_tokens == 100
    assert budget.learned is None


def test_padded_rows_cost_their_padding() -> None:
    assert packed_cost([3, 10, 1]) == 14
    assert padded_cost([3, 10, 1]) == 30


def _request(rows: list[list[int]], pooling: tuple[str, ...] | None = None) -> RunRequest:
    return RunRequest(
        model=ModelHandle("k:float32", "m:1", path=None, dtype="float32"),  # type: ignore[arg-type]  # no file is read
        spec=RunSpec("embedding", pooling, -1),
        lengths=tuple(len(row) for row in rows),
        token_ids=np.asarray([token for row in rows for token in row], dtype=np.int32),
    )


@pytest.mark.parametrize("pooling", [None, ("none",)])
def test_row_that_does_not_fit_alone_fails_alone(pooling: tuple[str, ...] | None) -> None:
    engine = HashEngine(Faults(oom_above_tokens=5), batch_tokens=1024)
    rows = [[1, 2], [3] * 6, [4, 5, 6]]
    result = engine.run(_request(rows, pooling))
    assert set(result.row_errors) == {1}
    assert result.row_errors[1].code == "out_of_device_memory"
    assert result.num_halvings >= 1
    if pooling is None:
        expected = [hash_vector(np.asarray(row, dtype=np.int32), 32) for row in rows]
        np.testing.assert_array_equal(result.vectors, [expected[0], np.zeros(32), expected[2]])
    else:
        assert result.vectors.shape == (11, 32)
        assert not result.vectors[2:8].any()
        assert result.vectors[[0, 1, 8, 9, 10]].all()


def test_batch_of_rows_that_all_fail_is_refused_as_a_whole() -> None:
    engine = HashEngine(Faults(oom_above_tokens=1), batch_tokens=1024)
    with pytest.raises(OutOfDeviceMemory):
        engine.run(_request([[1, 2], [3, 4]]))


def test_allocator_without_room_counts_as_out_of_memory() -> None:
    import torch

    from workers.device.device_errors import device_errors

    with pytest.raises(OutOfDeviceMemory), device_errors("a test"):
        torch.empty(1 << 50, dtype=torch.int8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CUDA error: device-side assert triggered", DeviceLost),
        ("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes", OutOfDeviceMemory),
        ("The size of tensor a (3) must match the size of tensor b (4)", DeviceError),
    ],
)
def test_torchs_errors_are_told_apart(text: str, expected: type[DeviceError]) -> None:
    from workers.device.device_errors import device_errors

    with pytest.raises(DeviceError) as caught, device_errors("a test"):
        raise RuntimeError(text)
    assert type(caught.value) is expected
