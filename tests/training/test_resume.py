"""A run that was killed or stopped and goes on ends with the very weights of the run that was left alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.runs import Child, Died, Event, make_plan, resumed, tag_rows, text_rows, train_here, weights
from workers.training.child.checkpoints import STATE_FILE
from workers.training.child.stopping import StopRequest
from workers.training.plan import TrainPlan

pytestmark = pytest.mark.integration

HYPER = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 2e-3,
    "logging_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 5,
}
EARLY = {"patience": 2, "threshold": 0.0}
ROWS: dict[str, Callable[[], list[dict[str, Any]]]] = {"text": lambda: text_rows(40), "tokens": lambda: tag_rows(40)}


@pytest.fixture(scope="module")
def whole_runs(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Event]]:
    """The events of the run of a kind of rows that is left alone, trained once."""
    done: dict[str, list[Event]] = {}

    def run(kind: str) -> list[Event]:
        if kind not in done:
            done[kind] = train_here(plan_of(kind, tmp_path_factory.mktemp("whole"), tiny_base))
        return done[kind]

    return run


def plan_of(kind: str, folder: Path, base: Path) -> TrainPlan:
    return make_plan(folder, base, ROWS[kind](), hyperparameters=HYPER, early_stopping=EARLY)


class Contents:
    """What was in each checkpoint folder when it was reported."""

    def __init__(self) -> None:
        self._files: dict[Path, dict[str, bytes]] = {}

    def remember_and_die(self, event: Event) -> None:
        if event["event"] == "checkpoint":
            folder = Path(event["folder"])
            assert folder not in self._files
            self._files[folder] = _files_in(folder)
            raise Died

    def check_unchanged(self) -> None:
        assert len(self._files) > 1
        assert {folder: _files_in(folder) for folder in self._files} == self._files


def _files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stop_after(step: int, stop: StopRequest) -> Callable[[Event], None]:
    def look(event: Event) -> None:
        if event["event"] == "metrics" and event["step"] == step:
            stop.is_set = True

    return look


def facts(events: list[Event]) -> dict[tuple[str, int], Any]:
    """What a run has said of each step, whatever it was interrupted by."""
    said: dict[tuple[str, int], Any] = {}
    for event in events:
        if event["event"] == "metrics":
            said["metrics", event["step"]] = (event["loss"], event["learning_rate"], event["grad_norm"])
        elif event["event"] in ("evaluation", "checkpoint"):
            said[event["event"], event["step"]] = (event["metrics"], event.get("is_best"))
        elif event["event"] == "finished":
            said["finished", event["step"]] = (event["best_step"], event["metrics"])
    return said


@pytest.mark.parametrize("kind", list(ROWS))
def test_a_run_that_dies_after_every_checkpoint_ends_as_the_one_that_does_not(
    kind: str, tiny_base: Path, tmp_path: Path, whole_runs: Callable[[str], list[Event]]
) -> None:
    whole = whole_runs(kind)
    plan = plan_of(kind, tmp_path, tiny_base)
    contents = Contents()
    events = train_here(plan, on_event=contents.remember_and_die)
    for attempt in range(2, 12):
        if events[-1]["event"] == "finished":
            break
        events += train_here(resumed(plan, events, attempt), on_event=contents.remember_and_die)

    assert weights(events) == weights(whole)
    assert facts(events) == facts(whole)
    contents.check_unchanged()


def test_a_stop_at_any_step_changes_nothing(tiny_base: Path, tmp_path: Path) -> None:
    hyper = HYPER | {"logging_steps": 1, "train_sampling_strategy": "random"}
    plan = make_plan(tmp_path / "a", tiny_base, text_rows(40), hyperparameters=hyper)
    whole = train_here(plan)

    # 4 is an epoch's end; the line of step 5 comes before its evaluation, which is broken off; at 10 one is due; 12 is
    # the last step.
    plan = make_plan(tmp_path / "b", tiny_base, text_rows(40), hyperparameters=hyper)
    events: list[Event] = []
    attempt = plan
    for number, (step, stopped) in enumerate(((3, 4), (5, 5), (9, 10), (11, 12)), start=2):
        stop = StopRequest()
        events += train_here(attempt, stop=stop, on_event=stop_after(step, stop))
        assert events[-1] == {"event": "stopped", "step": stopped}
        attempt = resumed(plan, events, number)
    events += train_here(attempt)

    assert weights(events) == weights(whole)
    told = facts(events)
    assert {key: value for key, value in told.items() if key in facts(whole)} == facts(whole)


def test_a_killed_and_a_stopped_child_go_on_in_another_place(
    tiny_base: Path, tmp_path: Path, whole_runs: Callable[[str], list[Event]]
) -> None:
    whole = whole_runs("text")

    def kill(child: Child, event: Event) -> None:
        if event["event"] == "checkpoint":
            child.kill()

    def ask_to_stop(child: Child, event: Event) -> None:
        if event["event"] == "started":
            child.ask_to_stop()

    plan = plan_of("text", tmp_path / "b", tiny_base)
    killed = Child(plan, on_event=kill)
    assert killed.process.returncode == -9
    again = resumed(plan, killed.events, 2)
    assert again.resume_from is not None and again.best_from is None
    moved = tmp_path / "elsewhere" / "checkpoint"
    shutil.move(again.resume_from, moved)
    shutil.rmtree(plan.work_dir)
    stopped = Child(replace(again, resume_from=moved), on_event=ask_to_stop)
    assert stopped.process.returncode == 0, stopped.log
    saved = [event for event in killed.events if event["event"] == "checkpoint"]  # it may have said more while it died
    assert stopped.one("started")["resumed_from"] == saved[-1]["step"]
    assert stopped.one("started")["resume_inexact"] is False
    assert stopped.events[-1]["event"] == "stopped"

    checkpoints = [event for event in stopped.events if event["event"] == "checkpoint"]
    last = resumed(plan, stopped.events, 3) if checkpoints else replace(again, resume_from=moved)
    best = last.best_from if checkpoints and checkpoints[-1]["is_best"] else moved
    assert weights(train_here(replace(last, best_from=best))) == weights(whole)


def test_a_resume_under_other_conditions_says_that_it_is_inexact(
    tiny_base: Path, tmp_path: Path, whole_runs: Callable[[str], list[Event]]
) -> None:
    whole = whole_runs("text")
    again = resumed(plan_of("text", tmp_path, tiny_base), whole, 2)
    assert again.resume_from is not None
    folder = Path(shutil.copytree(again.resume_from, tmp_path / "copy"))
    content = json.loads((folder / STATE_FILE).read_text())
    content["conditions"]["threads"] += 1
    (folder / STATE_FILE).write_text(json.dumps(content))

    events = train_here(replace(again, resume_from=folder))

    assert events[0]["resume_inexact"] is True
    assert weights(events) == weights(whole)  # no step was left to take
