"""Held-out rows: in proportion to the classes, each of which keeps a row, and the same ones everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.training_data.conftest import Load, csv_of
from workers.training.data.split import hold_out

pytestmark = pytest.mark.unit


def classes(**sizes: int) -> list[tuple[str, ...]]:
    return [(name,) for name, size in sizes.items() for _ in range(size)]


def taken(label_sets: list[tuple[str, ...]], rows: list[int]) -> Counter[str]:
    return Counter(label for row in rows for label in label_sets[row])


def test_seats_follow_the_largest_remainder() -> None:
    rows = classes(a=47, b=16, c=15, d=7, e=15)
    assert taken(rows, hold_out(rows, share=0.1, seed=1)) == {"a": 5, "b": 2, "c": 1, "d": 1, "e": 1}


def test_a_class_of_one_row_stays_in_training_and_the_share_is_kept() -> None:
    rows = classes(a=3, **{f"rare{i}": 1 for i in range(17)})
    assert taken(rows, hold_out(rows, share=0.1, seed=1)) == {"a": 2}


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_every_class_keeps_a_row(share: float) -> None:
    rows = classes(a=100, b=30, c=2, d=1)
    held_out = hold_out(rows, share=share, seed=3)
    assert len(held_out) == int(133 * share + 0.5)
    left = Counter(label for row, labels in enumerate(rows) if row not in set(held_out) for label in labels)
    assert all(left[name] >= 1 for name in "abcd")


def test_every_label_of_rows_with_several_keeps_a_row() -> None:
    rows: list[tuple[str, ...]] = [("a", "b"), ("b", "c"), ("a", "c"), ("d",), ("a", "d"), (), (), ("b",), ("c", "d")]
    for seed in range(50):
        held_out = hold_out(rows, share=0.5, seed=seed)
        assert 1 <= len(held_out) <= 4
        left = {label for row, labels in enumerate(rows) if row not in held_out for label in labels}
        assert left == {"a", "b", "c", "d"}


def test_small_and_impossible_shares() -> None:
    assert len(hold_out(classes(a=2, b=2), share=0.01, seed=0)) == 1
    assert hold_out(classes(a=5, b=5), share=0, seed=0) == []
    assert hold_out(classes(a=1, b=1), share=0.5, seed=0) == []
    assert len(hold_out([()] * 10, share=0.2, seed=0)) == 2


def test_another_seed_draws_other_rows() -> None:
    rows = classes(a=500, b=500)
    assert hold_out(rows, share=0.1, seed=1) == hold_out(rows, share=0.1, seed=1)
    assert hold_out(rows, share=0.1, seed=1) != hold_out(rows, share=0.1, seed=2)


def test_the_rows_are_those_that_were_drawn_before_and_will_be() -> None:
    assert hold_out(classes(a=20, b=10), share=0.2, seed=42) == [1, 6, 10, 16, 26, 27]


@pytest.mark.integration
def test_the_rows_are_the_same_in_processes_with_other_hash_seeds() -> None:
    code = (
        "from workers.training.data.split import hold_out\n"
        "rows = [(f'l{i % 7}', f'm{i % 5}') if i % 3 else (f'l{i % 7}',) for i in range(400)]\n"
        "print(hold_out(rows, share=0.1, seed=5))"
    )
    root = str(Path(__file__).resolve().parents[2])
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(outputs) == 1
    assert outputs.pop().count(",") == 39


def test_both_parts_keep_the_order_of_the_file(load: Load) -> None:
    data = load(("train.csv", csv_of(*((f"text {i:03}", "xy"[i % 2]) for i in range(100)))))
    train, validation = ([example.text for example in part] for part in (data.train, data.validation))
    assert (train, validation) == (sorted(str(t) for t in train), sorted(str(t) for t in validation))
    assert (len(train), len(validation)) == (90, 10)
    assert not set(train) & set(validation)
    assert data.report.class_counts.validation == {"x": 5, "y": 5}
