"""Rows that ask for the very same are computed once, and each work gets its answer whatever becomes of the others."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from ondol.contract.errors import DeadlineExceeded, WorkerLost
from ondol.contract.states import Priority
from tests.batching.rows import key_of, work_of
from workers.batcher import Batcher
from workers.rows import Batch, FloatArray, Row, Work

pytestmark = pytest.mark.unit

OUTPUT: FloatArray = np.ones(4, dtype=np.float32)


def _batcher(*, budget: int = 100) -> Batcher:
    batcher = Batcher(max_batch_tokens=budget)
    batcher.set_packed(key_of().model.key, is_packed=True)
    return batcher


def _next(batcher: Batcher) -> Batch:
    batch = batcher.next_batch(0.0, is_idle=True)
    assert batch is not None
    return batch


def _same(id: str, *, priority: Priority = Priority.NORMAL, **kwargs: float) -> Work:
    return work_of([10], id=id, token=5, priority=priority, **kwargs)  # type: ignore[arg-type]  # times


def _answer(batcher: Batcher, batch: Batch) -> None:
    batcher.forget(batch)
    for row in batch.rows:
        row.settle(OUTPUT, None)


def _run(batcher: Batcher) -> list[Row]:
    """Run everything; the rows that went through the model."""
    ran: list[Row] = []
    while (batch := batcher.next_batch(0.0, is_idle=True)) is not None:
        ran += batch.rows
        _answer(batcher, batch)
    assert (batcher.num_waiting_tokens, batcher.num_shared) == (0, 0)
    return ran


def test_identical_rows_of_many_works_go_through_the_model_once() -> None:
    batcher = _batcher()
    works = [_same(str(i)) for i in range(5)] + [work_of([10, 10, 10], id="within", token=5)]
    batcher.add(works)
    assert batcher.num_waiting_tokens == 10
    assert len(_run(batcher)) == 1
    assert all(work.done.is_set() and all(output is OUTPUT for output in work.outputs) for work in works)


def test_rows_that_differ_in_anything_are_computed_each() -> None:
    batcher = _batcher()
    first, typed, skipping, other_model = (_same(name) for name in "abcd")
    typed.rows[0].type_ids = np.ones(10, dtype=np.int32)
    skipping.rows[0].skip = 2
    other_model.key = key_of("other:1")
    other_model.rows[0].work = other_model
    batcher.add([first, typed, skipping, other_model, work_of([11], id="e", token=5)])
    assert len(_run(batcher)) == 5


def test_a_row_joins_one_that_is_on_the_device() -> None:
    batcher = _batcher()
    first, second = _same("first"), _same("second", priority=Priority.INTERACTIVE)
    batcher.add([first])
    batch = _next(batcher)
    batcher.add([second])
    assert batcher.next_batch(0.0, is_idle=True) is None
    _answer(batcher, batch)
    assert second.outputs[0] is OUTPUT and second.done.is_set()
    third = _same("third")
    batcher.add([third])
    assert len(_run(batcher)) == 1, "who comes after the answer is computed anew"


def test_an_interactive_row_does_not_wait_for_a_bulk_one() -> None:
    batcher = _batcher(budget=10)
    bulk = work_of([10, 10], id="bulk", priority=Priority.BULK, age_s=60)
    bulk.rows[1].ids[:] = 5
    call = _same("call", priority=Priority.INTERACTIVE)
    batcher.add([bulk])
    batcher.add([call])
    assert batcher.num_waiting_tokens == 20
    assert [row.work.id for row in _run(batcher)] == ["call", "bulk"]
    assert call.done.is_set() and bulk.done.is_set()


@pytest.mark.parametrize("priority", list(Priority))
def test_when_the_first_is_struck_out_a_twin_takes_its_place(priority: Priority) -> None:
    batcher = _batcher()
    first, struck_too, heir, last = (_same("first"), _same("b"), _same("heir", priority=priority), _same("last"))
    batcher.add([first, struck_too, heir, last])
    first.strike()
    struck_too.strike()
    assert len(_run(batcher)) == 1
    assert heir.done.is_set() and last.done.is_set() and not first.errors and not struck_too.outputs[0]


def test_when_the_call_that_took_over_leaves_the_bulk_row_runs_in_its_own_place() -> None:
    batcher = _batcher()
    bulk, call = _same("bulk", priority=Priority.BULK), _same("call", priority=Priority.INTERACTIVE)
    batcher.add([bulk])
    batcher.add([call])
    call.strike()
    assert [row.work.id for row in _run(batcher)] == ["bulk"]


def test_a_missed_deadline_of_the_first_is_not_its_twins() -> None:
    batcher = _batcher()
    late, other = _same("late", deadline_at=time.time() - 1), _same("other")
    batcher.add([late, other])
    assert [row.work.id for row in _run(batcher)] == ["other"]
    assert isinstance(late.errors[0], DeadlineExceeded) and not other.errors


def test_errors_and_losses_are_shared() -> None:
    batcher = _batcher()
    first, twin = _same("first"), _same("twin")
    batcher.add([first, twin])
    batch = _next(batcher)
    batcher.forget(batch)
    [row] = batch.rows
    for _ in range(3):
        row.count_loss()
    row.settle(None, WorkerLost("lost"))
    assert [work.num_new_losses for work in (first, twin)] == [3, 3]
    assert all(work.errors[0].code == "worker_lost" for work in (first, twin))


def test_nobody_joins_a_suspect_and_a_struck_suspect_has_a_suspect_heir() -> None:
    batcher = _batcher()
    first, twin = _same("first"), _same("twin")
    batcher.add([first, twin])
    batch = _next(batcher)
    batcher.forget(batch)
    batch.rows[0].count_loss()
    batcher.add_suspects([Batch(batch.key, batch.rows, is_exclusive=True)])
    later = _same("later")
    batcher.add([later])
    first.strike()
    again = _next(batcher)
    assert again.is_exclusive and [row.work.id for row in again.rows] == ["twin"]
    assert (again.rows[0].is_suspect, again.rows[0].num_losses) == (True, 1)
    _answer(batcher, again)
    assert [row.work.id for row in _run(batcher)] == ["later"]


def test_the_heir_of_a_suspect_leaves_its_own_line() -> None:
    batcher = _batcher()
    bulk, call = _same("bulk", priority=Priority.BULK), _same("call", priority=Priority.INTERACTIVE)
    batcher.add([bulk])
    batcher.add([call])
    batch = _next(batcher)
    batcher.forget(batch)
    batch.rows[0].count_loss()
    batcher.add_suspects([Batch(batch.key, batch.rows, is_exclusive=True)])
    call.strike()
    again = _next(batcher)
    assert again.is_exclusive and [row.work.id for row in again.rows] == ["bulk"]
    assert batcher.next_batch(0.0, is_idle=True) is None, "it is in no other batch"
    _answer(batcher, again)
    assert _run(batcher) == [] and bulk.done.is_set()


def test_a_job_that_must_be_alone_shares_with_nobody() -> None:
    batcher = _batcher()
    batcher.add([work_of([10], id="alone", token=5, is_alone=True), _same("a"), _same("b")])
    assert sorted(row.work.id for row in _run(batcher)) == ["a", "alone"]


def test_a_batch_that_comes_back_keeps_its_twins() -> None:
    batcher = _batcher()
    first, twin = _same("first"), _same("twin")
    batcher.add([first, twin])
    batcher.put_back(_next(batcher))
    batcher.add([_same("third")])
    assert len(_run(batcher)) == 1 and twin.done.is_set()


@pytest.mark.parametrize("is_packed", [True, False])
def test_every_work_is_answered_whatever_is_struck_out(*, is_packed: bool) -> None:
    for seed in range(30):
        draw = random.Random(seed)
        batcher = _batcher(budget=60)
        batcher.set_packed(key_of().model.key, is_packed=is_packed)
        works = []
        for i in range(60):
            work = work_of([draw.randint(4, 30) for _ in range(3)], id=str(i), priority=draw.choice(list(Priority)))
            for row in work.rows:
                row.ids[:] = draw.randint(1, 3)
            works.append(work)
            batcher.add([work])
            if draw.random() < 0.3:
                draw.choice(works).strike()
            if draw.random() < 0.3:
                batch = batcher.next_batch(0.0, is_idle=True)
                if batch is not None and draw.random() < 0.3:
                    batcher.put_back(batch)
                elif batch is not None:
                    _answer(batcher, batch)
        _run(batcher)
        for work in works:
            assert work.done.is_set()
            assert work.is_struck or all(output is OUTPUT for output in work.outputs)
