"""How far a host's clock is from the database's is known without asking for it, and told when it is far."""

from __future__ import annotations

import asyncio
from contextlib import closing

import pytest
from prometheus_client import CollectorRegistry

from api.readiness import ReadinessProbe
from ondol.cli.findings import Verdict
from ondol.cli.server_checks import judge_clocks
from ondol.control.troubles import Troubles
from ondol.metrics.clock import ClockMetric
from ondol.sql.database import Database
from ondol.sql.skew import ClockSkew
from tests.job_fixtures import open_database, open_session


def _metric(clock: ClockSkew) -> float | None:
    registry = CollectorRegistry()
    ClockMetric(registry).watch(lambda: clock.ahead_s)
    return registry.get_sample_value("ondol_clock_ahead_seconds")


@pytest.mark.unit
def test_a_look_is_the_middle_of_asking_and_being_answered() -> None:
    clock = ClockSkew()
    assert clock.ahead_s is None and _metric(clock) is None, "nothing is said before it is known"
    clock.saw(1_000.0, asked_at=1_600.0, answered_at=1_600.1)
    assert clock.ahead_s == pytest.approx(600.05) and _metric(clock) == pytest.approx(600.05)
    clock.saw(1_000.0, asked_at=1_000.0, answered_at=1_009.0)
    assert clock.ahead_s == pytest.approx(600.05), "an answer that took long says little"
    clock.saw(1_000.0, asked_at=999.9, answered_at=1_000.1)
    assert clock.ahead_s == pytest.approx(0.0)


@pytest.mark.unit
@pytest.mark.parametrize(("ahead_s", "lines"), [(1.5, 0), (2.5, 1), (-2.5, 1)])
def test_a_clock_that_is_far_off_is_logged_once_in_a_while(
    capsys: pytest.CaptureFixture[str], ahead_s: float, lines: int
) -> None:
    clock = ClockSkew()
    for _ in range(3):
        clock.saw(1_000.0, asked_at=1_000.0 + ahead_s, answered_at=1_000.0 + ahead_s)
    told = capsys.readouterr()
    assert (told.out + told.err).count("clock.skewed") == lines


@pytest.mark.integration
def test_whoever_reads_the_clock_of_the_database_learns_it_and_the_session_keeps_it(database_url: str) -> None:
    with closing(open_database(database_url)) as database:
        open_session(database)
        [session] = database.read(lambda uow: uow.sessions.open_sessions())
        assert database.clock.ahead_s == pytest.approx(0, abs=0.5), "the same host"
        assert session.clock_ahead_s == pytest.approx(0, abs=0.5)


@pytest.mark.integration
def test_an_api_that_is_ready_says_that_its_clock_is_wrong(sqlite_url: str) -> None:
    with closing(Database(sqlite_url)) as database:
        probe = ReadinessProbe(database, "redis://127.0.0.1:1")
        assert "clock" not in asyncio.run(probe.troubles())
        database.clock.saw(1_000.0, asked_at=400.0, answered_at=400.0)
        assert "600.0 s behind the database's" in str(asyncio.run(probe.troubles())["clock"])


@pytest.mark.unit
def test_the_doctor_names_the_workers_whose_clocks_are_wrong() -> None:
    assert judge_clocks(Troubles()).verdict is Verdict.OK
    finding = judge_clocks(Troubles(skewed_workers={"cpu0@far": -600.0, "cpu1@far": 3.25}))
    assert finding.verdict is Verdict.NOTE
    assert "cpu0@far is 600.0 s behind, cpu1@far is 3.2 s ahead of the database's" in finding.found
