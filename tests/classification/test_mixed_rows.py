"""Rows of different tasks and poolings of one model, in flight together: each gets what it asked for."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from ondol.contract.states import Priority
from tests.batching.rows import key_of
from tests.batching.test_dispatcher import LIMIT_S, Device
from tests.device_programs import hash_vector
from workers.rows import BatchKey, FloatArray, IntArray, Row, Work

pytestmark = pytest.mark.integration

DIMS = 32
MODEL = key_of().model
KEYS = (
    BatchKey(MODEL, "embedding", None, -1),
    BatchKey(MODEL, "embedding", ("none",), -1),
    BatchKey(MODEL, "text-classification", None, -1),
    BatchKey(MODEL, "token-classification", None, -1),
)


def work_of_any_kind(number: int, random_numbers: random.Random) -> Work:
    """Rows of random lengths and ids; every third text classification row is a pair with type ids."""
    key = KEYS[number % len(KEYS)]
    work = Work(id=str(number), key=key, priority=random_numbers.choice(list(Priority)))
    rows = []
    for i in range(random_numbers.randint(1, 5)):
        length = random_numbers.randint(2, 12)
        ids = np.array([random_numbers.randint(1, 500) for _ in range(length)], dtype=np.int32)
        is_pair = key.task == "text-classification" and random_numbers.random() < 1 / 3
        rows.append(Row(ids, work, i, type_ids=(np.arange(length) > 0).astype(np.int32) if is_pair else None))
    work.add_rows(rows)
    return work


def expected(row: Row) -> FloatArray:
    """What the tests' device program answers for the row alone."""
    if not row.work.key.is_by_token:
        return hash_vector(row.ids, DIMS, row.type_ids)
    tokens: list[IntArray] = [row.ids[i : i + 1] for i in range(row.num_tokens)]
    return np.stack([hash_vector(token, DIMS) for token in tokens])


@contextmanager
def _running_device() -> Iterator[Device]:
    device = Device(budget=64)
    device.keeper.start()
    assert device.keeper.wait_up(LIMIT_S)
    device.dispatcher.start()
    try:
        yield device
    finally:
        device.dispatcher.stop()
        device.keeper.stop()


def test_rows_of_all_tasks_in_flight_get_their_own_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    random_numbers = random.Random(7)
    works = [work_of_any_kind(number, random_numbers) for number in range(120)]
    assert any(row.type_ids is not None for work in works for row in work.rows)
    with _running_device() as device:
        device.run(works)
        assert len(device.ran) < sum(len(work.rows) for work in works), "rows shared batches"
        for work in works:
            for row, output in zip(work.rows, work.outputs, strict=True):
                assert output is not None, work.errors
                np.testing.assert_array_equal(output, expected(row), err_msg=f"row {row.index} of {work.key}")
