"""Training runs for tests: a tiny base, data files, and the child as a process whose events are read."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ondol.contract.fine_tune import FineTuneOptions
from tests.tiny_models import make_tiny_model
from workers.training.child.events import EventWriter
from workers.training.child.stopping import StopRequest
from workers.training.data.dataset import load_dataset
from workers.training.plan import BaseVersion, DataFile, DataFiles, TrainPlan, dump_plan

Event = dict[str, Any]

_WORDS = {
    "card": ("card", "arrived", "lost", "stolen", "new", "pin"),
    "money": ("transfer", "balance", "money", "fee", "top", "up"),
    "warm": ("온돌", "따뜻하다", "불을", "집", "오늘", "날씨"),
}
_TAGS = ("O", "B-PER", "I-PER", "B-LOC")
_FILE_ID = f"file_{'0' * 26}"


def make_base(folder: Path, source: Path | None = None, **kwargs: Any) -> Path:
    """A canonical version folder of a tiny random model, or of the model in `source`."""
    from workers.importing.importer import import_model

    made = source or make_tiny_model(folder / "source", **kwargs)
    target = folder / "base"
    target.mkdir(parents=True)
    import_model(made, target, convert_bin=False)
    return target


def text_rows(num: int = 60, seed: int = 1) -> list[dict[str, Any]]:
    """Texts of very different length with three labels."""
    draw = random.Random(seed)
    rows = []
    for number in range(num):
        label = list(_WORDS)[number % 3]
        words = draw.choices(_WORDS[label], k=draw.randint(2, 20)) + draw.choices(("the", "of", "is"), k=2)
        rows.append({"text": f"{' '.join(words)} {number}", "label": label})
    return rows


def tag_rows(num: int = 60, seed: int = 2) -> list[dict[str, Any]]:
    """Words with tags."""
    draw = random.Random(seed)
    rows = []
    for number in range(num):
        tags = [draw.choice(_TAGS) for _ in range(draw.randint(3, 15))]
        tags = [
            "O" if tag == "I-PER" and (index == 0 or tags[index - 1] not in ("B-PER", "I-PER")) else tag
            for index, tag in enumerate(tags)
        ]
        tokens = [f"{tag.lower().replace('-', '')}{draw.randint(0, 9)}" for tag in tags]
        rows.append({"tokens": [*tokens, str(number)], "tags": [*tags, "O"]})
    return rows


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> DataFile:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return DataFile(path, path.name)


def make_plan(folder: Path, base: Path, rows: Sequence[dict[str, Any]], **options: Any) -> TrainPlan:
    """A checked plan; `options` are those of the job."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"output_name": "tiny", "train_file": _FILE_ID, "validation_split": 0.2} | options
    plan = TrainPlan(
        job_id=f"job_{'0' * 26}",
        attempt=1,
        base=BaseVersion("base:1", base),
        files=DataFiles(write_jsonl(folder / "train.jsonl", rows)),
        options=FineTuneOptions.model_validate(settings),
        work_dir=folder / "work-1",
        threads=1,
        output_ref_name="tiny",
        lineage={"base": "base:1"},
    )
    return replace(plan, report=load_dataset(plan).report)


class Child:
    """One life of the training child; `on_event` may end it with a signal."""

    def __init__(self, plan: TrainPlan, *, on_event: Callable[[Child, Event], None] | None = None) -> None:
        plan.work_dir.mkdir(parents=True, exist_ok=True)
        path = plan.work_dir / "plan.json"
        path.write_bytes(dump_plan(plan))
        reading, writing = os.pipe()
        command = [sys.executable, "-P", "-m", "workers.training.child", "--plan", str(path)]
        self.process = subprocess.Popen(
            [*command, "--events-fd", str(writing)],
            pass_fds=(writing,),
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "ONDOL_LOG_FORMAT": "console"},
            stderr=subprocess.PIPE,
        )
        os.close(writing)
        self.events: list[Event] = []
        with os.fdopen(reading, encoding="utf-8") as lines:
            for line in lines:
                self.events.append(json.loads(line))
                if on_event is not None:
                    on_event(self, self.events[-1])
        self.log = self.process.communicate(timeout=60)[1].decode()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def ask_to_stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def all(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["event"] == kind]

    def one(self, kind: str) -> Event:
        found = self.all(kind)
        assert len(found) == 1, (kind, self.events, self.log)
        return found[0]


def newest_checkpoints(events: Sequence[Event]) -> tuple[Path, Path | None]:
    """The folders to resume from and of the best step, as a supervisor would choose them."""
    checkpoints = {event["step"]: event for event in events if event["event"] == "checkpoint"}
    newest = checkpoints[max(checkpoints)]
    best = [event for event in checkpoints.values() if event["is_best"]]
    best_from = Path(best[-1]["folder"]) if best and best[-1]["step"] != newest["step"] else None
    return Path(newest["folder"]), best_from


class Died(BaseException):
    """Stands for SIGKILL in a run inside the test's own process."""


class Recorder(EventWriter):
    """Keeps events; `on_event` may raise `Died`, after which the run has written nothing more."""

    def __init__(self, on_event: Callable[[Event], None] | None = None) -> None:
        self.events: list[Event] = []
        self._on_event = on_event

    def send(self, event: str, **fields: Any) -> None:
        self.events.append(json.loads(json.dumps({"event": event, **fields})))
        if self._on_event is not None:
            self._on_event(self.events[-1])


def train_here(
    plan: TrainPlan, *, stop: StopRequest | None = None, on_event: Callable[[Event], None] | None = None
) -> list[Event]:
    """Run the plan in this process (an import of transformers costs more than the training); its events."""
    import torch

    from workers.training.child.run import run_training

    plan.work_dir.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(on_event)
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        run_training(plan, recorder, stop or StopRequest(), torch.device("cpu"))
    except Died:
        pass
    finally:
        torch.set_num_threads(threads)
    return recorder.events


def resumed(plan: TrainPlan, events: Sequence[Event], attempt: int) -> TrainPlan:
    """The plan of the next attempt, as a supervisor would write it after `events`."""
    resume_from, best_from = newest_checkpoints(events)
    work_dir = plan.work_dir.with_name(f"work-{attempt}")
    return replace(plan, attempt=attempt, resume_from=resume_from, best_from=best_from, work_dir=work_dir)


def weights(events: Sequence[Event]) -> bytes:
    """The published weights, bit by bit."""
    (finished,) = [event for event in events if event["event"] == "finished"]
    return Path(finished["folder"], "model.safetensors").read_bytes()
