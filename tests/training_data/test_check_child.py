"""The check runs in a child of its own: light, limited, ended in time, and answering in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ondol.contract.errors import AttemptError, AttemptTimedOut, InvalidPayload, ModelStoreError
from tests.training_data.conftest import MakePlan, csv_of
from workers.training.check_run import run_check
from workers.training.data.dataset import load_dataset
from workers.training.plan import PLAN_FILE, TrainPlan, dump_plan

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60
GOOD = ("train.csv", csv_of(*((f"text {i}", "xy"[i % 2]) for i in range(20))))
LIGHT_MODULES = (
    "workers.training.check",
    "workers.training.check_run",
    "workers.training.plan",
    "workers.training.data.dataset",
)


def write_plan(plan: TrainPlan) -> Path:
    path = plan.work_dir / PLAN_FILE
    path.write_bytes(dump_plan(plan))
    return path


def pipe_plan(plan: TrainPlan, folder: Path) -> Path:
    """A plan whose file never gives a byte: the child waits for a writer."""
    pipe = folder / "pipe.csv"
    os.mkfifo(pipe)
    return write_plan(replace(plan, files=replace(plan.files, train=replace(plan.files.train, path=pipe))))


def test_the_report_of_the_child_is_that_of_the_library(make_plan: MakePlan) -> None:
    plan = make_plan(GOOD)
    assert run_check(write_plan(plan), timeout_s=LIMIT_S) == load_dataset(plan).report


def test_what_is_wrong_with_the_data_comes_back_as_it_was_said(make_plan: MakePlan) -> None:
    plan = make_plan(("train.csv", "text,label\n온돌,x\nb\n"))
    with pytest.raises(InvalidPayload) as caught:
        run_check(write_plan(plan), timeout_s=LIMIT_S)
    assert caught.value.message.startswith("train.csv, row 2 (line 3): too few cells")
    assert (caught.value.code, caught.value.param) == ("invalid_payload", "options.train_file")


def test_a_base_that_cannot_be_read_is_not_the_datas_fault(make_plan: MakePlan) -> None:
    plan = make_plan(GOOD)
    (plan.base.path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelStoreError, match=r"tokenizer.json of the base is not readable"):
        run_check(write_plan(plan), timeout_s=LIMIT_S)


def test_a_check_that_takes_too_long_is_ended(make_plan: MakePlan, tmp_path: Path) -> None:
    with pytest.raises(AttemptTimedOut, match=r"took longer than 0.3 s"):
        run_check(pipe_plan(make_plan(GOOD), tmp_path), timeout_s=0.3)


def test_a_check_that_is_cancelled_is_ended_at_once(make_plan: MakePlan, tmp_path: Path) -> None:
    polls = []

    def must_end() -> bool:
        polls.append(time.monotonic())
        return len(polls) > 2

    assert run_check(pipe_plan(make_plan(GOOD), tmp_path), timeout_s=LIMIT_S, must_end=must_end) is None
    assert polls[-1] - polls[0] < LIMIT_S / 2


def test_a_check_without_memory_is_an_error_of_the_attempt_or_of_the_data(make_plan: MakePlan) -> None:
    plan = make_plan(GOOD)
    with pytest.raises((AttemptError, InvalidPayload), match=r"memory"):
        run_check(write_plan(plan), timeout_s=LIMIT_S, memory_mb=200)


def test_the_command_answers_in_one_line(make_plan: MakePlan) -> None:
    command = [sys.executable, "-m", "workers.training.check", "--plan", str(write_plan(make_plan(GOOD)))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    [line] = done.stdout.splitlines()
    answer = json.loads(line)
    assert (answer["ok"], answer["report"]["labels"]) == (True, ["x", "y"])


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_torch_and_transformers_are_not_imported(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "sentence_transformers", "datasets"}
    heavy |= {"pyarrow", "tokenizers"} if module.endswith(("check", "check_run", "plan")) else set()
    assert not heavy & set(done.stdout.split())
