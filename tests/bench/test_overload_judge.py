"""What `bench.overload` holds against a refusal: when the refused jobs had found room, by the jobs that had left."""

from __future__ import annotations

import pytest

from bench.overload import Judged, Refusal, Seen, judge

pytestmark = pytest.mark.unit

MAX_JOBS = 20


def seen(*, refused_at: float, num_jobs: int = 10) -> Seen:
    """Twenty jobs are there at second 0, ten more come at second 7; from second 1 on one leaves each second."""
    refused = [Refusal(refused_at, num_jobs, whole_s=1.0, exact_s=0.5)]
    return Seen(accepted=[(0.0, 20), (7.0, 10)], refused=refused, left_at=[float(s) for s in range(1, 31)])


@pytest.mark.parametrize(
    ("at", "num_jobs", "truth_s"),
    [
        (2.5, 10, 7.5),  # two have left; with the tenth, at 10, there is room
        (2.5, 3, 0.5),
        (6.5, 10, 3.5),  # those who come later take nothing from it
        (7.5, 10, 12.5),  # those who came before do
        (2.5, 1, 0.0),  # there was room when it was answered
    ],
)
def test_the_truth_is_when_as_many_had_left_as_were_too_many(at: float, num_jobs: int, truth_s: float) -> None:
    [judged] = judge(seen(refused_at=at, num_jobs=num_jobs), MAX_JOBS)
    assert judged.truth_s == truth_s


def test_a_refusal_without_room_before_the_end_is_not_judged() -> None:
    assert judge(seen(refused_at=7.5, num_jobs=21), MAX_JOBS) == []


@pytest.mark.parametrize(("truth_s", "whole_s"), [(0.0, 1), (0.2, 1), (1.0, 1), (1.1, 2), (7.0, 7)])
def test_at_best_a_header_tells_whole_seconds_and_one_at_least(truth_s: float, whole_s: int) -> None:
    assert Judged(Refusal(0.0, 1, 1.0, 1.0), truth_s).whole_truth_s == whole_s
