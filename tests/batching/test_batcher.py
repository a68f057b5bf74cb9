"""Batches are cut by tokens, in an order in which the urgent overtake and nobody waits for ever."""

from __future__ import annotations

import random
import threading
import time

import pytest

from ondol.contract.errors import DeadlineExceeded
from ondol.contract.states import Priority
from tests.batching.rows import key_of, work_of
from workers.batcher import MAX_OVERTAKING, Batcher
from workers.rows import Batch, Row

pytestmark = pytest.mark.unit


def _batcher(*, padded: bool = False, budget: int = 100) -> Batcher:
    batcher = Batcher(max_batch_tokens=budget)
    batcher.set_packed(key_of().model.key, is_packed=not padded)
    return batcher


def _next(batcher: Batcher, *, is_idle: bool = True) -> Batch | None:
    return batcher.next_batch(0.0, is_idle=is_idle)


def _all(batcher: Batcher) -> list[Batch]:
    return list(iter(lambda: _next(batcher), None))


def _sizes(batch: Batch | None) -> list[int]:
    assert batch is not None
    return [row.num_tokens for row in batch.rows]


def test_rows_of_many_works_share_a_batch_up_to_the_token_budget() -> None:
    batcher = _batcher()
    batcher.add([work_of([40, 40], id="a"), work_of([20, 30], id="b")])
    assert _sizes(_next(batcher)) == [40, 40, 20]
    assert batcher.num_waiting_tokens == 30
    assert _sizes(_next(batcher)) == [30]
    assert (_next(batcher), batcher.num_waiting_tokens) == (None, 0)


def test_a_row_over_the_budget_goes_alone() -> None:
    batcher = _batcher()
    batcher.add([work_of([250, 10])])
    assert [_sizes(batch) for batch in _all(batcher)] == [[250], [10]]


def test_rows_of_different_models_never_share_a_batch() -> None:
    batcher = _batcher()
    batcher.add([work_of([10], model="a:1"), work_of([10], model="b:1"), work_of([10], model="a:1")])
    assert sorted(len(batch.rows) for batch in _all(batcher)) == [1, 2]


def test_a_learned_budget_holds_for_its_model_alone() -> None:
    batcher = _batcher()
    batcher.set_budget(key_of("small:1").model.key, 20)
    batcher.add([work_of([10] * 4, model="small:1", age_s=1), work_of([10] * 4)])
    assert [len(batch.rows) for batch in _all(batcher)] == [2, 2, 4]


def test_interactive_rows_overtake_those_that_came_a_moment_before() -> None:
    batcher = _batcher(budget=10)
    batcher.add([work_of([10], id="bulk", priority=Priority.BULK, age_s=2)])
    batcher.add([work_of([10], id="normal", age_s=0.5)])
    batcher.add([work_of([10], id="now", priority=Priority.INTERACTIVE)])
    assert [batch.rows[0].work.id for batch in _all(batcher)] == ["now", "normal", "bulk"]


def test_interactive_rows_wait_for_no_backlog_however_old() -> None:
    batcher = _batcher(budget=10)
    batcher.add([work_of([10] * 100, id="bulk", priority=Priority.BULK, age_s=60)])
    batcher.add([work_of([10], id="now", priority=Priority.INTERACTIVE)])
    assert [batch.rows[0].work.id for batch in _all(batcher)][:2] == ["now", "bulk"]


@pytest.mark.parametrize("padded", [False, True])
def test_an_aged_row_gets_its_turn_under_constant_interactive_load(*, padded: bool) -> None:
    batcher = _batcher(padded=padded, budget=10)
    batcher.add([work_of([10] * 2, id="bulk", priority=Priority.BULK, age_s=5.5)])
    batcher.add([work_of([10] * 20, id="now", priority=Priority.INTERACTIVE)])
    order = [batch.rows[0].work.id for batch in _all(batcher)]
    turns = [i for i, name in enumerate(order) if name == "bulk"]
    assert turns == [MAX_OVERTAKING, 2 * MAX_OVERTAKING + 1]


def test_a_row_within_its_grace_has_no_claim_to_a_turn() -> None:
    batcher = _batcher(budget=10)
    batcher.add([work_of([10], id="bulk", priority=Priority.BULK, age_s=2)])
    batcher.add([work_of([10] * 9, id="now", priority=Priority.INTERACTIVE)])
    assert [batch.rows[0].work.id for batch in _all(batcher)] == ["now"] * 9 + ["bulk"]


@pytest.mark.parametrize("padded", [False, True])
def test_a_call_leads_a_batch_that_bulk_rows_fill_to_a_part(*, padded: bool) -> None:
    batcher = _batcher(padded=padded, budget=120)
    batcher.add([work_of([10] * 20, id="bulk", priority=Priority.BULK, age_s=60)])
    batcher.add([work_of([10], id="now", priority=Priority.INTERACTIVE)])
    batch = _next(batcher)
    assert batch is not None and sorted(row.work.id for row in batch.rows) == ["bulk", "bulk", "now"]
    following = _next(batcher)
    assert following is not None and len(following.rows) == 12


def test_calls_themselves_fill_a_whole_batch() -> None:
    batcher = _batcher(budget=120)
    batcher.add([work_of([10] * 20, id="bulk", priority=Priority.BULK, age_s=60)])
    batcher.add([work_of([10], id=f"call {i}", priority=Priority.INTERACTIVE) for i in range(20)])
    batch = _next(batcher)
    assert batch is not None and len(batch.rows) == 12
    assert {row.work.priority for row in batch.rows} == {Priority.INTERACTIVE}


def test_while_calls_come_bulk_is_not_sent_ahead() -> None:
    batcher = _batcher(budget=10)
    batcher.add([work_of([10] * 9, id="bulk", priority=Priority.BULK)])
    assert _next(batcher, is_idle=False) is not None, "no call came: the pipeline is kept full"
    batcher.add([work_of([10], id="now", priority=Priority.INTERACTIVE)])
    ahead = _next(batcher, is_idle=False)
    assert ahead is not None and ahead.rows[0].work.id == "now"
    assert _next(batcher, is_idle=False) is None
    assert _next(batcher, is_idle=True) is not None


def test_rows_of_a_struck_work_are_dropped_when_packing() -> None:
    batcher = _batcher()
    struck, kept = work_of([10, 10], id="struck"), work_of([10], id="kept")
    batcher.add([struck, kept])
    struck.strike()
    assert [row.work.id for batch in _all(batcher) for row in batch.rows] == ["kept"]
    assert batcher.num_waiting_tokens == 0


def test_a_struck_work_tells_its_owner_once() -> None:
    told: list[str] = []
    work = work_of([10], on_done=lambda done: told.append(done.id))
    work.strike()
    work.strike()
    work.settle(work.rows[0], None, DeadlineExceeded("late"))
    assert (told, work.done.is_set(), work.errors) == (["job_1"], True, {})


def test_a_missed_deadline_settles_the_row_and_never_reaches_the_device() -> None:
    batcher = _batcher()
    late, other = work_of([10], id="late", deadline_at=time.time() - 1), work_of([10], id="other")
    batcher.add([late, other])
    assert [row.work.id for batch in _all(batcher) for row in batch.rows] == ["other"]
    assert isinstance(late.errors[0], DeadlineExceeded) and late.done.is_set()


def test_forming_survives_rows_that_are_struck_at_any_moment() -> None:
    """A row may cease to be wanted between two looks at it: no batch is empty, no row is lost or doubled."""
    for seed in range(20):
        batcher = _batcher(padded=seed % 2 == 0)
        works = [work_of([5 + i % 30], id=str(i)) for i in range(200)]
        struck = works[::2]
        random.Random(seed).shuffle(struck)
        batcher.add(works)
        striker = threading.Thread(target=lambda works=struck: [work.strike() for work in works])
        striker.start()
        batches = _all(batcher)
        striker.join()
        batches += _all(batcher)
        ran = [row.work.id for batch in batches for row in batch.rows]
        assert all(batch.rows for batch in batches)
        assert len(ran) == len(set(ran))
        assert {work.id for work in works[1::2]} <= set(ran)
        assert batcher.num_waiting_tokens == 0


def test_a_job_that_must_be_alone_goes_row_by_row_on_an_idle_device() -> None:
    batcher = _batcher()
    batcher.add([work_of([10, 10], id="alone", is_alone=True, age_s=1), work_of([10], id="other")])
    assert _next(batcher, is_idle=False) is None
    first = _next(batcher)
    assert first is not None and first.is_exclusive and len(first.rows) == 1
    assert [(len(batch.rows), batch.is_exclusive) for batch in _all(batcher)] == [(1, True), (1, False)]


def test_suspects_go_first_and_only_on_an_idle_device() -> None:
    batcher = _batcher()
    batcher.add([work_of([10], id="other", priority=Priority.INTERACTIVE, age_s=9)])
    suspect = work_of([10], id="suspect")
    batcher.add_suspects([Batch(key_of(), suspect.rows, is_exclusive=True)])
    assert _next(batcher, is_idle=False) is None
    assert [batch.rows[0].work.id for batch in _all(batcher)] == ["suspect", "other"]


def test_suspects_that_nobody_wants_any_more_are_forgotten() -> None:
    batcher = _batcher()
    suspect = work_of([10])
    batcher.add_suspects([Batch(key_of(), suspect.rows, is_exclusive=True)])
    suspect.strike()
    assert _next(batcher) is None


def test_a_batch_that_was_not_begun_comes_back_at_the_head_in_its_order() -> None:
    batcher = _batcher()
    batcher.add([work_of([50, 49, 48, 47])])
    batch = _next(batcher)
    assert batch is not None
    batcher.put_back(batch)
    assert batcher.num_waiting_tokens == 194
    assert [_sizes(each) for each in _all(batcher)] == [[50, 49], [48, 47]]


def test_a_suspect_batch_that_was_not_begun_stays_exclusive() -> None:
    batcher = _batcher()
    work = work_of([10])
    work.rows[0].is_suspect = True
    batcher.put_back(Batch(key_of(), work.rows, is_exclusive=True))
    assert _next(batcher, is_idle=False) is None
    again = _next(batcher)
    assert again is not None and again.is_exclusive


def test_padded_batches_hold_rows_of_like_length_within_the_budget() -> None:
    batcher = _batcher(padded=True, budget=128)
    lengths = [random.Random(3).randint(4, 60) for _ in range(200)]
    batcher.add([work_of(lengths)])
    batches = _all(batcher)
    assert sorted(n for batch in batches for n in _sizes(batch)) == sorted(lengths)
    padded = sum(max(_sizes(batch)) * len(batch.rows) for batch in batches)
    assert all(max(_sizes(batch)) * len(batch.rows) <= 128 for batch in batches)
    assert padded < 1.25 * sum(lengths), "sorted within the window: little padding"


def test_a_padded_batch_holds_the_head_and_leaves_the_others_in_their_order() -> None:
    batcher = _batcher(padded=True, budget=20)
    work = work_of([10, 3, 10, 4, 3])
    batcher.add([work])
    first = _next(batcher)
    assert first is not None and work.rows[0] in first.rows
    left: list[Row] = [row for row in work.rows if row not in first.rows]
    batcher.set_packed(key_of().model.key, is_packed=True)
    assert [row for batch in _all(batcher) for row in batch.rows] == left


def test_a_waiting_dispatcher_is_woken_by_new_rows() -> None:
    batcher = _batcher()
    adder = threading.Timer(0.05, lambda: batcher.add([work_of([10])]))
    adder.start()
    batch = batcher.next_batch(10.0, is_idle=True)
    adder.join()
    assert batch is not None
