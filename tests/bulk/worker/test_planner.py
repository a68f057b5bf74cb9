"""The planner brings a file here, has a child cut it, and stores what was cut; what it cannot do it says in words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ondol.contract.errors import AttemptError, ContractError, InvalidPayload, OndolError, StoreUnavailable
from tests.bulk.worker.conftest import MakePlan, json_lines
from tests.bulk.worker.planned_jobs import MAX_TOKENS, PlanningHouse, open_house
from tests.job_fixtures import finish_messages
from tests.waiting import wait_until
from workers.sharding import planner as planner_module
from workers.sharding.payload import read_payload
from workers.sharding.plan import PAYLOADS_FILE, write_plan
from workers.sharding.planner import PlannedShards

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[3]
TEXTS = [f"the warm floor of room {i}" for i in range(500)]
CSV = "text\n" + "".join(f"{text}\n" for text in TEXTS)
ENDLESS = "text\n" + "the floor is warm\n" * 2_000_000


def never() -> bool:
    return False


@pytest.fixture
def house(tmp_path: Path, sqlite_url: str) -> Iterator[PlanningHouse]:
    made = open_house(tmp_path, sqlite_url)
    yield made
    made.database.close()


def record(house: PlanningHouse, job_id: str, attempt: int, planned: PlannedShards) -> bool:
    return house.database.write(
        lambda uow: uow.shards.record(
            job_id,
            attempt,
            planned.shards,
            num_inputs=planned.num_inputs,
            estimated_tokens=planned.estimated_tokens,
        )
    )


def test_planned_shards_are_claimed_with_their_inputs(house: PlanningHouse) -> None:
    job = house.claim_one(house.upload("texts.csv", CSV))
    planned = house.planner.plan(job, must_end=never)
    assert planned is not None
    assert (planned.num_inputs, planned.num_refused, planned.path) == (500, 0, f"{job.id}/1.bin")
    assert all(shard.estimated_tokens <= MAX_TOKENS for shard in planned.shards)
    assert record(house, job.id, job.attempt, planned)
    found: dict[str, list[str]] = {}
    while claimed := house.claim():
        found |= {shard.id: [str(one) for one in read_payload(shard, house.inputs).inputs] for shard in claimed}
        finish_messages(house.database)
    assert len(found) == len(planned.shards) > 2
    assert [text for _, texts in sorted(found.items()) for text in texts] == TEXTS
    assert list(house.staging.iterdir()) == [], "nothing local is left"


def test_refused_rows_and_ids_are_told_to_whoever_runs_the_shard(house: PlanningHouse) -> None:
    content = json_lines({"id": 1, "text": "a"}, {"id": 2, "text": ""}, {"id": 3, "text": "b"})
    job = house.claim_one(house.upload("texts.jsonl", content))
    planned = house.planner.plan(job, must_end=never)
    assert planned is not None
    assert record(house, job.id, job.attempt, planned)
    [shard] = house.claim()
    payload = read_payload(shard, house.inputs)
    assert (payload.inputs, payload.ids) == (["a", "", "b"], [1, 2, 3])
    assert {place: error.as_dict() for place, error in payload.errors.items()} == {
        1: {"code": "invalid_payload", "message": "row 2: column 'text' is empty", "param": None}
    }


def test_a_batch_of_openais_is_told_apart_by_the_payload(house: PlanningHouse) -> None:
    request = {"method": "POST", "url": "/v1/embeddings", "body": {"model": "tiny", "input": ["a", "b"]}}
    payload = {"format": "openai_batch", "endpoint": "/v1/embeddings", "body": {"model": "tiny"}}
    job = house.claim_one(house.upload("b.jsonl", json_lines({"custom_id": "x"} | request)), payload=payload)
    planned = house.planner.plan(job, must_end=never)
    assert planned is not None
    [shard] = planned.shards
    assert shard.blob is not None
    assert json.loads(house.inputs.read(shard.blob)) == {"inputs": ["a", "b"], "ids": ["x", "x"]}


def test_a_broken_file_is_the_jobs_fault_and_leaves_nothing(house: PlanningHouse) -> None:
    job = house.claim_one(house.upload("texts.csv", "text,id\na,1\nb\n"))
    with pytest.raises(InvalidPayload) as caught:
        house.planner.plan(job, must_end=never)
    assert (caught.value.code, caught.value.param) == ("invalid_file", "input_file")
    assert caught.value.message.startswith("texts.csv, row 2 (line 3): too few cells")
    assert (house.stored(), list(house.staging.iterdir())) == ([], [])


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_a_file_that_is_not_what_was_uploaded_is_not_run(house: PlanningHouse, change: str) -> None:
    file_id = house.upload("texts.csv", CSV)
    job = house.claim_one(file_id)
    house.files.delete(file_id)
    if change == "changed":
        writer = house.files.create(file_id)
        writer.write(CSV.replace("warm", "cold").encode())
        writer.commit()
    with pytest.raises(ContractError) as caught:
        house.planner.plan(job, must_end=never)
    assert (caught.value.code, caught.value.retryable) == ("input_changed", False)


def test_a_plan_that_is_not_wanted_any_more_ends_its_child_at_once(house: PlanningHouse) -> None:
    job = house.claim_one(house.upload("texts.csv", ENDLESS))
    struck = threading.Event()
    found: list[PlannedShards | None] = []
    thread = threading.Thread(target=lambda: found.append(house.planner.plan(job, must_end=struck.is_set)))
    thread.start()
    child = wait_until(cutting_child, within_s=30, what="the planning child")
    assert child is not None
    struck.set()
    thread.join(timeout=10)
    assert found == [None]
    assert not child.is_running()
    assert (house.stored(), list(house.staging.iterdir())) == ([], [])


def test_a_child_that_is_killed_is_worth_another_try(house: PlanningHouse) -> None:
    job = house.claim_one(house.upload("texts.csv", ENDLESS))
    raised: list[OndolError] = []

    def plan() -> None:
        try:
            house.planner.plan(job, must_end=never)
        except OndolError as exc:
            raised.append(exc)

    thread = threading.Thread(target=plan)
    thread.start()
    child = wait_until(cutting_child, within_s=30, what="the planning child")
    assert child is not None
    child.send_signal(signal.SIGKILL)
    thread.join(timeout=10)
    [error] = raised
    assert (error.code, error.retryable) == ("planning_child_died", True)
    assert "signal 9" in error.message


def test_what_earlier_attempts_left_is_removed(house: PlanningHouse) -> None:
    job = house.claim_one(house.upload("texts.csv", CSV))
    assert house.planner.plan(job, must_end=never) is not None, "and then its worker is killed"
    house.database.write(lambda uow: uow.attempts.hand_back([(job.id, job.attempt)]))
    finish_messages(house.database)
    [again] = house.claim()
    planned = house.planner.plan(again, must_end=never)
    assert planned is not None
    assert house.stored() == [f"{job.id}/2.bin"]
    house.planner.drop(planned)
    assert house.stored() == []


def test_the_plan_of_an_attempt_that_was_overtaken_is_refused(house: PlanningHouse) -> None:
    job = house.claim_one(house.upload("texts.csv", CSV))
    planned = house.planner.plan(job, must_end=never)
    assert planned is not None
    house.database.write(lambda uow: uow.attempts.hand_back([(job.id, job.attempt)]))
    assert not record(house, job.id, job.attempt, planned)


def test_too_little_memory_is_said_in_words(house: PlanningHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner_module, "PLANNING_MEMORY_MB", 60)
    job = house.claim_one(house.upload("texts.csv", CSV))
    with pytest.raises((AttemptError, InvalidPayload), match="memory"):
        house.planner.plan(job, must_end=never)


def test_a_full_disk_is_nobodys_mistake_and_worth_another_try(make_plan: MakePlan) -> None:
    plan = make_plan("texts.csv", CSV)
    (plan.work_dir / PAYLOADS_FILE).symlink_to("/dev/full")
    with pytest.raises(StoreUnavailable) as caught:
        planner_module._run_child(plan, never)
    assert (caught.value.code, caught.value.retryable) == ("storage_full", True)


def test_the_child_has_no_secrets_and_no_network(make_plan: MakePlan) -> None:
    plan = write_plan(make_plan("texts.csv", CSV))
    code = (
        "import socket, sys, workers.sharding.__main__ as child; sys.argv[1:] = ['--plan', sys.argv[1]]; child.main()\n"
        "socket.create_connection(('127.0.0.1', 9))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(plan)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout)["report"]["num_inputs"] == 500
    assert "PermissionError" in done.stderr


def test_the_workers_side_imports_none_of_the_readers() -> None:
    code = "import sys, workers.sharding.planner; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "pyarrow", "tokenizers"} & set(done.stdout.split())


def cutting_child() -> psutil.Process | None:
    """The planning child of this process, once it has its limits."""
    for child in psutil.Process(os.getpid()).children():
        try:
            if "workers.sharding" in child.cmdline() and child.nice() > 0:
                return child
        except psutil.Error:
            continue
    return None
