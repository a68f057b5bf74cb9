"""Retry-After is worth what the measured rate is: it must follow how fast jobs leave while some wait."""

from __future__ import annotations

import pytest

from api.drain_rate import ALL, DrainRate
from ondol.contract.states import Priority
from ondol.sql.backlog import Amount, Backlog

pytestmark = pytest.mark.unit


def count(now: float, queued: int, *, ended: int = 0, project: str = "p", tokens: int = 10) -> Backlog:
    """A count of jobs of so many tokens each."""
    return Backlog(
        queued={(project, Priority.NORMAL): Amount(queued, queued * tokens)} if queued else {},
        ended={project: Amount(ended, ended * tokens)} if ended else {},
        rules={},
        now=now,
    )


def test_nothing_is_known_before_anything_has_left() -> None:
    drain = DrainRate()
    drain.add(count(0.0, 100), {})
    drain.add(count(1.0, 100), {})
    assert drain.of() is None


def test_it_is_right_seconds_after_work_has_begun() -> None:
    drain = DrainRate()
    for second in range(5):
        drain.add(count(float(second), 1000 - 50 * second, ended=50 if second else 0), {})
    rate = drain.of()
    assert rate is not None and (rate.jobs, rate.tokens) == (50, 500)


def test_time_without_waiting_jobs_says_nothing_about_how_fast_they_leave() -> None:
    drain = DrainRate()
    for second in range(10):
        drain.add(count(float(second), 0), {})
    for second in range(10, 14):
        drain.add(count(float(second), 200 - 20 * (second - 10), ended=20 if second > 10 else 0), {})
    rate = drain.of()
    assert rate is not None and rate.jobs == 20


def test_shards_that_leave_count_before_their_job_has_ended() -> None:
    drain = DrainRate()
    for second in range(6):
        queued = {("p", Priority.NORMAL): Amount(1, 1_000_000 - 16_000 * second)}
        drain.add(Backlog(queued, {}, {}, float(second)), {})
    rate = drain.of("p")
    assert rate is not None and (rate.jobs, rate.tokens) == (0, 16_000)


def test_what_was_recorded_meanwhile_has_not_hidden_what_left() -> None:
    drain = DrainRate()
    for second in range(6):
        drain.add(count(float(second), 500), {"p": Amount(30 * second, 300 * second)})
    rate = drain.of()
    assert rate is not None and (rate.jobs, rate.tokens) == (30, 300)


def test_projects_have_rates_of_their_own() -> None:
    drain = DrainRate()
    for second in range(5):
        queued = {
            ("fast", Priority.NORMAL): Amount(1000 - 40 * second, 10_000 - 400 * second),
            ("slow", Priority.NORMAL): Amount(1000 - 10 * second, 10_000 - 100 * second),
        }
        drain.add(Backlog(queued, {}, {}, float(second)), {})
    rates = [drain.of(scope) for scope in ("fast", "slow", ALL)]
    assert [rate.jobs for rate in rates if rate is not None] == [40, 10, 50]
