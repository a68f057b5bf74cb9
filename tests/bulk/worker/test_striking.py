"""A cancelled job takes its plan and all of its shards with it, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from ondol.contract.ids import shard_id
from ondol.contract.states import Priority
from workers.in_flight import InFlight
from workers.rows import BatchKey, DeviceModel, Work
from workers.serving_gate import ServingGate

pytestmark = pytest.mark.unit

KEY = BatchKey(DeviceModel("m:float32", "m:1", "m", "float32"), "embedding", None, -1)


def work(job_id: str, *, needs_lease: bool = True) -> Work:
    return Work(job_id, KEY, Priority.BULK, needs_lease=needs_lease)


@pytest.fixture
def in_flight(tmp_path: Path) -> InFlight:
    return InFlight(ServingGate(tmp_path / "gate"))


def test_the_id_of_a_job_strikes_its_shards(in_flight: InFlight) -> None:
    works = [work(one) for one in (shard_id("job_a", 0), shard_id("job_a", 12), "job_a1", shard_id("job_b", 0))]
    in_flight.add(works)
    in_flight.strike(["job_a", "job_unknown"])
    assert [one.is_struck for one in works] == [True, True, False, False]


def test_a_plan_learns_that_its_job_was_struck(in_flight: InFlight) -> None:
    with in_flight.planning("job_a") as is_struck, in_flight.planning("job_b") as is_other_struck:
        assert not is_struck()
        in_flight.strike(["job_a"])
        assert (is_struck(), is_other_struck()) == (True, False)
    in_flight.strike(["job_b"])
    assert not is_other_struck(), "it has ended before"


def test_a_lost_lease_ends_plans_and_leaves_calls(in_flight: InFlight) -> None:
    call = work("call_1", needs_lease=False)
    in_flight.add([call])
    with in_flight.planning("job_a") as is_struck:
        in_flight.strike_leased()
        assert is_struck()
    assert not call.is_struck
