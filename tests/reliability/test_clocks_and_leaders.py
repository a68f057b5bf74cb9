"""Two reconcilers, of which one sleeps over its lead, and workers whose clocks are ten minutes wrong.

Scenarios 37 and 38 of `docs/reliability.md`.
"""

from __future__ import annotations

from collections import Counter

import pytest
import sqlalchemy as sa

from ondol.sql.tables import leaders
from tests.reliability.conftest import MakeHouse
from tests.reliability.house import LIMIT_S, SLOW, House
from tests.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.integration]

RECONCILERS = ("reconciler", "second")


def test_38_a_leader_that_wakes_behind_its_lease_repairs_nothing_twice(make_house: MakeHouse, sqlite_url: str) -> None:
    with make_house(sqlite_url) as house:
        house.start_api()
        house.start_reconciler()
        wait_until(lambda: _leading(house) == ["reconciler"], within_s=LIMIT_S, what="the first to lead")
        house.start_program("second", "ondol.control.reconciler_main")
        house.start_worker(faults=SLOW)
        term = house.count(sa.select(leaders.c.term))
        job_id = house.long_job()
        house.freeze("reconciler")
        wait_until(lambda: _leading(house)[-1:] == ["second"], within_s=LIMIT_S, what="the second to lead")
        before = house.repairs()
        house.kill("worker0")
        wait_until(lambda: (house.repairs() - before)["job_taken_back"], within_s=LIMIT_S, what="the repair")
        house.thaw("reconciler")
        wait_until(
            lambda: house.lines_of("reconciler", "reconciler.follows"), within_s=LIMIT_S, what="the first to follow"
        )
        house.bring_back()
        house.ended(job_id)
        assert house.attempts_of(job_id) == [(1, "lost"), (2, "succeeded")]
        repairs = house.repairs() - before
        assert repairs["job_taken_back"] == 1 and repairs["session_lapsed"] == 1
        assert house.count(sa.select(leaders.c.term)) == term + 1
        assert not house.lines_of("reconciler", "repair.session_lapsed"), "the stale leader has repaired nothing"


@pytest.mark.parametrize("ahead_s", [600, -600], ids=["ahead", "behind"])
def test_37_leases_hold_and_lapse_by_the_clock_of_the_database(
    make_house: MakeHouse, postgresql_url: str, ahead_s: int
) -> None:
    with make_house(postgresql_url) as house:  # SQLite has no clock of its own: it is on the same host
        house.start_api()
        house.start_reconciler()
        skewed = ("tests.reliability.skewed_process", str(ahead_s), "tests.faulty_worker", *SLOW)
        house.start_program("worker0", *skewed, ONDOL_DEVICE="cpu:0", ONDOL_CORES="0")
        session = wait_until(house.session_of, within_s=LIMIT_S, what="a session")
        ids = [house.submit(f"in time {i}", deadline_s=120) for i in range(3)]
        house.all_ended(ids)
        long = house.long_job()
        house.ended(long)
        assert house.outcomes([*ids, long]) == Counter({(1, "succeeded"): 4}), "no early expiry"
        assert house.session_of() == session and not house.repairs()["session_lapsed"]
        shown = house.job(ids[0])
        assert 0 <= shown["finished_at"] - shown["created_at"] < 120, "times are the database's"

        held = house.long_job()
        house.kill("worker0")
        wait_until(lambda: house.repairs()["session_lapsed"] == 1, within_s=LIMIT_S, what="no immortal lease")
        house.start_worker(1, faults=[])
        house.ended(held)
        assert house.attempts_of(held) == [(1, "lost"), (2, "succeeded")]


def _leading(house: House) -> list[str]:
    """Who began to lead, in the order of its log lines."""
    lines = [
        (line["timestamp"], name)
        for name in RECONCILERS
        if name in house.processes
        for line in house.lines_of(name, "reconciler.leads")
    ]
    return [name for _, name in sorted(lines)]
