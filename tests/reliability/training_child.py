"""A training child without a model: the product's protocol of events and folders, at a pace that the test sets.

It takes the arguments of `workers.training.child` and `--control FOLDER`. The file `until` in there holds the last step
that it may take. Every third step, and the last, is a checkpoint; SIGTERM makes one more and ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

from workers.device.lifeline import bind_to_parent, lead_process_group
from workers.training.child.events import EventWriter
from workers.training.plan import TrainPlan, parse_plan

CHECKPOINT_EVERY = 3
CHECKPOINT_BYTES = 100_000
LOOK_S = 0.02
STATE_FILE = "state.json"


class Training:
    """Counts steps; resumes where its checkpoint says."""

    def __init__(self, plan: TrainPlan, events: EventWriter, control: Path, stop: threading.Event) -> None:
        assert plan.report is not None
        self._plan, self._events, self._control, self._stop = plan, events, control, stop
        self._max_steps = plan.report.max_steps
        resumed = plan.resume_from
        self._step = 0 if resumed is None else int(json.loads((resumed / STATE_FILE).read_text())["step"])

    def run(self) -> None:
        """Train to the end, or until SIGTERM."""
        resumed = self._step or None
        self._events.send("started", max_steps=self._max_steps, resumed_from=resumed, resume_inexact=False)
        saved = self._step
        while self._step < self._max_steps:
            while not self._stop.is_set() and self._step >= self._last_allowed():
                self._stop.wait(LOOK_S)
            if self._stop.is_set():
                if self._step > 0:
                    self._save()
                self._events.send("stopped", step=self._step)
                return
            self._step += 1
            self._events.send("metrics", step=self._step, loss=1 / self._step, max_steps=self._max_steps)
            if self._step % CHECKPOINT_EVERY == 0:
                self._save()
                saved = self._step
        if saved != self._step:
            self._save()
        self._finish()

    def _last_allowed(self) -> int:
        path = self._control / "until"
        return int(path.read_text()) if path.exists() else self._max_steps

    def _save(self) -> None:
        folder = self._plan.work_dir / f"checkpoint-{self._step}"
        number = 2
        while folder.exists():
            folder, number = folder.with_name(f"checkpoint-{self._step}-{number}"), number + 1
        folder.mkdir()
        (folder / STATE_FILE).write_text(json.dumps({"step": self._step}))
        (folder / "optimizer.pt").write_bytes(bytes([self._step % 256]) * CHECKPOINT_BYTES)
        metrics = {"accuracy": self._step / self._max_steps}
        self._events.send("checkpoint", step=self._step, folder=str(folder), metrics=metrics, is_best=True)

    def _finish(self) -> None:
        folder = self._plan.work_dir / "version"
        shutil.copytree(self._plan.base.path, folder, ignore=shutil.ignore_patterns(".*"))
        marks: dict[str, object] = {"steps": self._max_steps, "job": self._plan.job_id}
        if (self._control / "mark-attempt").exists():
            marks["attempt"] = self._plan.attempt
        (folder / "trained.json").write_text(json.dumps(marks))
        metrics = {"accuracy": 1.0}
        self._events.send("finished", step=self._step, best_step=self._step, metrics=metrics, folder=str(folder))


def main(argv: list[str]) -> int:
    """Run one training."""
    parser = argparse.ArgumentParser(prog="tests.reliability.training_child")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--events-fd", type=int, required=True)
    parser.add_argument("--control", type=Path, required=True)
    parser.add_argument("--parent-pid", type=int, default=os.getppid())
    given = parser.parse_args(argv)
    bind_to_parent(given.parent_pid)
    lead_process_group()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Training(parse_plan(given.plan.read_bytes()), EventWriter(given.events_fd), given.control, stop).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
