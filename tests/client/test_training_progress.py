"""What a fine-tune's events say together, how it looks on a terminal and elsewhere, and waiting with them."""

from __future__ import annotations

import os
import pty
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from ondol import JobEvent, WaitTimedOut
from ondol.client.progress import ProgressReport
from ondol.client.records import parse_job
from ondol.client.training_progress import TrainingProgress, duration
from ondol.client.training_report import TrainingReport
from tests.client.scripted_server import ScriptedServer, client_of, job_json

pytestmark = pytest.mark.unit

REPORT = {"metric": "f1_macro", "max_steps": 40}
COLUMNS = 80
_STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
Said = tuple[str, dict[str, Any]]

CHECK: list[Said] = [
    ("state", {"from": None, "to": "validating_files", "reason": "accepted"}),
    ("state", {"from": "validating_files", "to": "validating_files", "reason": "claimed"}),
    ("message", {"message": "3 rows are there twice", "level": "warn"}),
    ("message", {"message": "the files are good", "report": REPORT}),
    ("state", {"from": "validating_files", "to": "queued", "reason": "validated"}),
]
BEGIN: list[Said] = [
    ("state", {"from": "queued", "to": "running", "reason": "claimed", "attempt": 2, "worker": "train@here"}),
    ("message", {"message": "training begins, to step 40", "max_steps": 40, "resumed_from": None}),
]
END: list[Said] = [("state", {"from": "running", "to": "succeeded", "reason": "completed"})]


def steps(step: int, *, loss: float = 0.5, eta_s: float = 65.0) -> Said:
    return "metrics", {"phase": "train", "step": step, "epoch": step / 20, "loss": loss, "eta_s": eta_s}


def evaluation(step: int, f1: float | None, loss: float = 0.4) -> Said:
    metrics = {"accuracy": 0.9, "f1_macro": f1, "loss": loss}
    return "metrics", {"phase": "evaluation", "step": step, "epoch": step / 20, "metrics": metrics}


def checkpoint(step: int) -> Said:
    data = {"step": step, "size_bytes": 91_200_000, "metrics": {}, "is_best": True}
    return "message", {"message": f"the checkpoint of step {step} is committed", "checkpoint": data}


def events(*said: Said) -> list[JobEvent]:
    return [JobEvent(i + 1, kind, datetime.now(UTC), data, {}) for i, (kind, data) in enumerate(said)]


def raw_events(*said: Said) -> list[dict[str, Any]]:
    return [
        {"object": "job.event", "seq": i + 1, "created_at": 1790000000.0, "type": kind, "data": data}
        for i, (kind, data) in enumerate(said)
    ]


def fine_tune(**more: Any) -> dict[str, Any]:
    return job_json(**{"status": "validating_files", "kind": "fine-tune", **more})


def new_progress(**more: Any) -> TrainingProgress:
    return TrainingProgress(parse_job(fine_tune(**more)))


def take(progress: TrainingProgress, *said: Said) -> list[str]:
    lines = [progress.take(event) for event in events(*said)]
    return [line for line in lines if line is not None]


def test_events_become_lines_and_one_picture() -> None:
    progress = new_progress()
    assert take(progress, *CHECK) == [
        "accepted; the files are checked first",
        "the files are being checked",
        "warning: 3 rows are there twice",
        "the files are good",
        "queued for training",
    ]
    assert (progress.phase, progress.max_steps, progress.metric) == ("queued", 40, "f1_macro")
    lines = take(progress, *BEGIN, steps(10), evaluation(20, 0.8), checkpoint(20), steps(30, loss=0.25))
    assert lines == [
        "starting on train@here",
        "training begins, to step 40",
        "step 20: f1_macro 0.8000, loss 0.4000, accuracy 0.9000 - best so far",
        "checkpoint of step 20, 91.2 MB",
    ]
    assert progress.describe() == "training, step 30/40, epoch 1.50, loss 0.2500, best f1_macro 0.8000, 1 min 05 s left"
    take(progress, steps(40))
    assert progress.phase == "publishing"
    again = ("state", {"from": "queued", "to": "running", "attempt": 3, "worker": "train@there"})
    assert take(progress, ("state", {"from": "running", "to": "queued", "reason": "lapsed"}), again)[1:] == [
        "starting again, attempt 3, on train@there"
    ]
    assert progress.phase == "starting"
    assert take(progress, *END) == ["the job has succeeded"]


def test_the_best_is_the_earlier_of_equal_ones_and_the_lower_loss() -> None:
    progress = new_progress(resolved={"report": {"metric": "f1_macro", "max_steps": 40}})
    take(progress, evaluation(10, 0.8), evaluation(20, 0.8), evaluation(30, 0.7), evaluation(40, None))
    assert progress.best is not None
    assert (progress.best.step, progress.best.value) == (10, 0.8)
    by_loss = new_progress(resolved={"report": {"metric": "loss", "max_steps": 40}})
    take(by_loss, evaluation(10, 0.9, loss=0.4), evaluation(20, 0.1, loss=0.3))
    assert by_loss.best is not None
    assert by_loss.best.step == 20


def test_what_lies_behind_the_checkpoint_gone_on_from_counts_no_more() -> None:
    progress = new_progress(resolved={"report": REPORT})
    take(progress, *BEGIN, evaluation(20, 0.5), steps(30), evaluation(35, 0.9))
    take(progress, ("message", {"message": "goes on", "max_steps": 40, "resumed_from": 20}))
    assert progress.step == 20
    assert progress.best is not None
    assert progress.best.step == 20
    assert progress.loss is None


def test_a_pause_says_how_to_go_on() -> None:
    progress = new_progress()
    [line] = take(progress, ("state", {"from": "running", "to": "paused", "reason": "pause_requested"}))
    assert "`ondol jobs resume job_1`" in line
    assert progress.phase == "paused"


@pytest.mark.parametrize(("given", "said"), [(0.4, "0 s"), (59, "59 s"), (65, "1 min 05 s"), (7_260, "2 h 01 min")])
def test_durations_are_for_people(given: float, said: str) -> None:
    assert duration(given) == said


def test_elsewhere_steps_are_said_every_few_seconds_and_the_rest_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    many = [steps(step) for step in range(1, 40)]
    with TrainingReport(parse_job(fine_tune())) as report:
        for event in events(*CHECK, *BEGIN, *many, evaluation(39, 0.8), steps(40), *END):
            report.take(event)
    said = capsys.readouterr()
    lines = [line.partition(" ")[2] for line in said.err.splitlines()]
    assert said.out == ""
    assert [line for line in lines if line.startswith(("training, ", "publishing, "))] == [
        "training, step 1/40, epoch 0.05, loss 0.5000, 1 min 05 s left",
        "publishing, step 40/40, epoch 2.00, loss 0.5000, best f1_macro 0.8000, 1 min 05 s left",
    ]
    assert len(lines) == len(CHECK) + len(BEGIN) + 2 + 1 + len(END)


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """A real terminal as stderr; what was written to it is in the list afterwards."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    seen: list[bytes] = []
    ours, theirs = pty.openpty()
    reading = threading.Thread(target=_read_all, args=(ours, seen))
    reading.start()  # a terminal that nobody reads takes 4 KiB, then blocks
    with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        yield seen
    reading.join(timeout=10)
    os.close(ours)


def _read_all(descriptor: int, seen: list[bytes]) -> None:
    while True:
        try:
            seen.append(os.read(descriptor, 65_536))
        except OSError:  # the other end is closed
            return


def test_a_terminal_shows_a_bar_below_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as seen:
        assert sys.stderr.isatty()
        with TrainingReport(parse_job(fine_tune())) as report:
            for event in events(*CHECK, *BEGIN, steps(10), evaluation(20, 0.8), steps(30, loss=0.25)):
                report.take(event)
    screen = b"".join(seen).decode()
    assert "step 20: f1_macro 0.8000, loss 0.4000, accuracy 0.9000 - best so far" in screen
    last = screen[screen.rindex("training") :]
    assert "30/40" in last
    assert "epoch 1.5 loss 0.250 best f1_macro 0.800" in last
    assert "ETA 1:05" in screen
    assert all(len(line) <= COLUMNS for line in _STYLES.sub("", screen).splitlines())


def test_an_evaluation_names_the_metrics_that_there_is_room_for() -> None:
    progress = new_progress(resolved={"report": REPORT})
    [evaluated] = events(evaluation(20, 0.8))
    assert progress.take(evaluated, columns=60) == "step 20: f1_macro 0.8000, loss 0.4000 - best so far"
    assert progress.take(evaluated, columns=10) == "step 20: f1_macro 0.8000 - best so far"


def test_a_long_training_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    long = {**REPORT, "metric": "f1_macro", "max_steps": 123_456}
    with terminal(monkeypatch) as seen, TrainingReport(parse_job(fine_tune(resolved={"report": long}))) as report:
        reports = [steps(step, loss=12.3456, eta_s=35_999) for step in range(0, 120_000, 10_000)]
        reports.append(evaluation(110_000, 0.8, loss=0.5))
        for event in events(("message", {"message": "a long " * 20}), *BEGIN[:1], *reports):
            report.take(event)
    lines = _STYLES.sub("", b"".join(seen).decode()).splitlines()
    assert all(len(line) <= COLUMNS for line in lines)
    assert "110000/123456 loss 12.346 best f1_macro 0.800 ETA 9:59:59" in lines[-1]
    assert any(re.match(r" {9}\w", line) for line in lines)


def test_inputs_on_a_terminal_have_a_bar_a_rate_and_a_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as seen, ProgressReport("token-classification") as report:
        for done in (0, 100_000, 200_000, 400_000):
            report.update(done, 400_000, "running")
    lines = _STYLES.sub("", b"".join(seen).decode()).splitlines()
    assert all(len(line) <= COLUMNS for line in lines)
    assert re.search(r"token-classification ━+ 400000/400000 [\d,]+/s \d+:\d\d running", lines[-1])


def _page(data: list[dict[str, Any]], *, has_more: bool = False) -> httpx.Response:
    return httpx.Response(200, json={"object": "list", "data": data, "has_more": has_more})


def test_waiting_with_progress_reads_each_event_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = raw_events(*CHECK, *BEGIN, *END)
    server = ScriptedServer(
        [
            httpx.Response(200, json=fine_tune()),
            httpx.Response(200, json=fine_tune(status="running")),
            _page(said[:4], has_more=True),
            _page(said[4:7]),
            httpx.Response(200, json=fine_tune(status="succeeded")),
            _page(said[7:]),
        ]
    )
    job = client_of(server).jobs.get("job_1")
    assert job.wait(progress=True).status == "succeeded"
    assert [r.url.params.get("after") for r in server.requests[1:]] == [None, "0", "4", None, "7"]
    assert server.requests[1].url.params["wait"] == "0.0"
    assert len(capsys.readouterr().err.splitlines()) == len(said)


def test_waiting_with_progress_stops_at_its_limit() -> None:
    running = httpx.Response(200, json=fine_tune(status="running"))
    server = ScriptedServer([running, running, _page([])])
    job = client_of(server).jobs.get("job_1")
    with pytest.raises(WaitTimedOut, match="goes on running"):
        job.wait(progress=True, timeout_s=0)


def test_a_result_has_the_model_and_its_metrics() -> None:
    raw = {"object": "fine_tune.result", "model": "mood:3", "metrics": {"f1_macro": 0.8}, "checkpoints": []}
    result = client_of(ScriptedServer([httpx.Response(200, json=raw)])).jobs.result("job_1")
    assert (result.model, result.metrics, result.items) == ("mood:3", {"f1_macro": 0.8}, ())


def test_a_job_says_what_was_resolved_and_when_its_device_was_freed() -> None:
    job = parse_job(fine_tune(status="cancelled", resolved={"report": REPORT}, device_released_at=1790000002.0))
    assert job.resolved == {"report": REPORT}
    assert job.device_released_at == datetime.fromtimestamp(1790000002.0, UTC)
    assert parse_job(job_json()).resolved is None
