"""Whatever moves come in whatever order, the tables say what a small model of them says, on both databases."""

from __future__ import annotations

import pytest
from hypothesis.stateful import run_state_machine_as_test

from ondol.sql.database import Database
from tests.hypothesis_runs import bounded
from tests.model_based.machine import JobMachine

pytestmark = pytest.mark.integration


def test_jobs_and_fine_tunes_follow_the_model(database: Database) -> None:
    machine = type("JobMachineHere", (JobMachine,), {"database": database})
    run_state_machine_as_test(machine, settings=bounded(10, num_long=400, steps=30))
