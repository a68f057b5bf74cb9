"""Order of rows, choice of the best step, early stopping, losses and metrics: the parts without a model."""

from __future__ import annotations

import math
from itertools import chain

import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler

from ondol.contract.errors import InvalidPayload
from ondol.contract.fine_tune import EarlyStopping
from workers.training.child.history import Evaluation, best_of, is_exhausted
from workers.training.child.losses import TaskLoss, class_weights
from workers.training.child.metrics import row_metrics, tag_metrics
from workers.training.child.order import EpochBatches

pytestmark = pytest.mark.unit

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def batches(epoch: int, *, group_by_length: bool = True, num: int = 103) -> list[list[int]]:
    lengths = [(7 * index) % 41 + 1 for index in range(num)]
    order = EpochBatches(lengths, batch_size=4, seed=3, group_by_length=group_by_length)
    order.set_epoch(epoch)
    assert len(list(order)) == len(order)
    return list(order)


@pytest.mark.parametrize("group_by_length", [True, False])
def test_every_epoch_has_all_rows_once_in_an_order_of_its_own(group_by_length: bool) -> None:
    first, second = (batches(epoch, group_by_length=group_by_length) for epoch in (0, 1))
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(103))
    assert first != second
    assert first == batches(0, group_by_length=group_by_length)


def test_the_random_order_is_that_of_a_plain_trainer_with_the_same_seed() -> None:
    theirs = SeedableRandomSampler(range(103), data_seed=3)
    for epoch in (0, 1):
        theirs.set_epoch(epoch)
        assert list(chain(*batches(epoch, group_by_length=False))) == list(theirs)


def test_rows_of_like_length_share_a_batch_and_the_longest_comes_first() -> None:
    lengths = [(7 * index) % 41 + 1 for index in range(103)]
    grouped = batches(0)
    spread = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in grouped]
    mixed = [
        max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches(0, group_by_length=False)
    ]
    assert sum(spread) < sum(mixed) / 2
    assert max(lengths) in [lengths[i] for i in grouped[0]]


def evaluations(*values: float, metric: str = "f1") -> list[Evaluation]:
    return [Evaluation(10 * number, {metric: value}) for number, value in enumerate(values, start=1)]


def test_the_earlier_of_equal_steps_is_best_and_a_loss_is_best_when_low() -> None:
    best, lowest = (
        best_of(evaluations(0.5, 0.7, 0.7, 0.6), "f1"),
        best_of(evaluations(0.5, 0.2, 0.2, metric="loss"), "loss"),
    )
    assert best is not None and best.step == 20
    assert lowest is not None and lowest.step == 20
    assert best_of([], "f1") is None


def test_an_early_stop_needs_patience_and_counts_rises_up_to_the_threshold_as_none() -> None:
    assert not is_exhausted(evaluations(0.5, 0.4), "f1", EarlyStopping(patience=2))
    assert is_exhausted(evaluations(0.5, 0.4, 0.5), "f1", EarlyStopping(patience=2))
    assert not is_exhausted(evaluations(0.5, 0.4, 0.6), "f1", EarlyStopping(patience=2))
    assert is_exhausted(evaluations(0.5, 0.54, 0.58), "f1", EarlyStopping(patience=2, threshold=0.05))
    assert not is_exhausted(evaluations(0.5, 0.4, 0.3), "f1", None)


def test_a_loss_of_parts_is_the_loss_of_the_whole() -> None:
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 2, 1, 0])
    for smoothing in (0.0, 0.1):
        loss = TaskLoss(SINGLE, weights=None, label_smoothing=smoothing)
        parts = loss(logits[:2], labels[:2], 6) + loss(logits[2:], labels[2:], 6)
        torch.testing.assert_close(parts, torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing))


def test_tokens_that_are_not_scored_do_not_count() -> None:
    loss = TaskLoss("token-classification", weights=None, label_smoothing=0.0)
    labels = torch.tensor([[1, -100, 0], [-100, -100, -100]])
    assert loss.count(labels) == 2
    assert float(loss(torch.zeros(2, 3, 4), labels, 2)) == pytest.approx(math.log(4))
    assert float(loss(torch.zeros(1, 3, 4), labels[1:], 0)) == 0.0


def test_a_regression_learns_numbers_and_several_labels_are_judged_one_by_one() -> None:
    regression = TaskLoss("regression", weights=None, label_smoothing=0.0)
    labels = torch.tensor([-100.0, 2.0])  # -100 is a number here, not a mark
    assert float(regression(torch.tensor([[-99.0], [4.0]]), labels, regression.count(labels))) == pytest.approx(2.5)
    multi = TaskLoss(MULTI, weights=None, label_smoothing=0.0)
    vectors = torch.tensor([[1.0, 0.0, 1.0]])
    assert float(multi(torch.zeros(1, 3), vectors, multi.count(vectors))) == pytest.approx(math.log(2))


def test_balanced_weights_have_mean_one_over_the_rows() -> None:
    counts = {"a": 90, "b": 10}
    found = class_weights("balanced", labels=["a", "b"], counts=counts, num_rows=100, problem=SINGLE)
    assert found == pytest.approx([100 / 180, 5.0])
    given = class_weights({"b": 9.0}, labels=["a", "b"], counts=counts, num_rows=100, problem=SINGLE)
    assert given is not None and given[1] / given[0] == pytest.approx(9)
    assert given[0] * 90 + given[1] * 10 == pytest.approx(100)
    positive = class_weights("balanced", labels=["a", "b"], counts=counts, num_rows=100, problem=MULTI)
    assert positive == pytest.approx([10 / 90, 9.0])


def test_weights_of_unknown_labels_and_of_a_regression_are_refused() -> None:
    with pytest.raises(InvalidPayload, match="names c"):
        class_weights({"c": 1.0}, labels=["a"], counts={"a": 1}, num_rows=1, problem=SINGLE)
    with pytest.raises(InvalidPayload, match="regression"):
        class_weights("balanced", labels=["score"], counts={}, num_rows=1, problem="regression")


def test_metrics_are_those_of_the_libraries() -> None:
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 2.0]])
    single = row_metrics(SINGLE, logits, np.array([0, 1, 1, 1]))
    assert single == pytest.approx({"accuracy": 0.75, "f1_macro": (2 / 3 + 0.8) / 2, "f1_weighted": 2 / 12 + 0.6})
    multi = row_metrics(MULTI, np.array([[1.0, -1.0], [1.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert multi["accuracy"] == 0.5 and multi["f1_micro"] == pytest.approx(0.8)
    assert row_metrics("regression", np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 2.0, 3.0]))["spearman"] == 1.0
    assert row_metrics("regression", np.ones((3, 1)), np.array([1.0, 2.0, 3.0]))["spearman"] == 0.0
    tags = tag_metrics([["B-PER", "I-PER", "O"]], [["B-PER", "I-PER", "B-LOC"]])
    assert tags["precision"] == 1.0 and tags["recall"] == 0.5 and tags["f1"] == pytest.approx(2 / 3)
    assert tag_metrics([["O"]], [["O"]])["f1"] == 0.0
