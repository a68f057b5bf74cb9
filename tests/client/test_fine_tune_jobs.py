"""Fine-tunes through the SDK and the command line, on a real api; what a trainer would report is written by hand."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from ondol import JobFailed, Ondol, RequestRefused, StateConflict
from ondol.cli.main import run
from ondol.contract.states import JobState
from ondol.sql.tables import jobs
from tests.client.terminals import COLUMNS, OnTerminal
from tests.client.trainer_peer import REPORT, TrainerPeer
from tests.http.api_process import MODEL, ROOT, ApiProcess, Member
from tests.http.shared_api import api_fixture
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

ROWS = "text,label\n" + "".join(f"the stove is warm {i},{'glad' if i % 2 else 'calm'}\n" for i in range(20))
_OPTIONS = sa.select(jobs.c.options).where(jobs.c.id == sa.bindparam("id"))
_CANCEL_LEFTOVERS = (
    sa.update(jobs)
    .where(jobs.c.state.in_((JobState.VALIDATING_FILES, JobState.QUEUED)))
    .values(state=JobState.CANCELLED)
)
_numbers = itertools.count(1)


api = api_fixture()


@pytest.fixture
def member(api: ApiProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Member]:
    """Somebody whose key the SDK and the command line find in the environment, and the address too."""
    made = api.member()
    monkeypatch.setenv("ONDOL_URL", api.url)
    monkeypatch.setenv("ONDOL_API_KEY", made.secret)
    yield made
    made.close()


@pytest.fixture
def client(member: Member) -> Iterator[Ondol]:
    with Ondol() as opened:
        yield opened


@pytest.fixture
def trainer(api: ApiProcess, redis_server: RedisServer) -> Iterator[TrainerPeer]:
    # What other tests left waiting would be rung for this trainer too.
    api.database.write(lambda uow: uow.conn.execute(_CANCEL_LEFTOVERS))
    peer = TrainerPeer(api.database, redis_server.url, f"train{next(_numbers)}@test")
    yield peer
    peer.close()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(ROWS)
    return path


def train(trainer: TrainerPeer) -> None:
    """From the check to the published version."""
    trainer.check("1 row is there twice")
    job = trainer.begin()
    trainer.measure(job, 1, loss=0.75, eta_s=2.0)
    trainer.evaluate(job, 2, f1_macro=0.75, loss=0.5)
    trainer.measure(job, 4, loss=0.25, eta_s=0.0)
    trainer.finish(job, alias={"name": "production", "is_moved": True, "points_to": 3})


def test_a_fine_tune_from_the_file_to_its_result(client: Ondol, trainer: TrainerPeer, rows: Path) -> None:
    job = client.fine_tune(rows, model=MODEL, name="mood", epochs=2, weight_decay=0.1, metadata={"mine": 1})
    assert (job.kind, job.status, job.model, dict(job.metadata)) == (
        "fine-tune",
        "validating_files",
        f"{MODEL}:1",
        {"mine": 1},
    )
    [stored] = client.files.list(purpose="fine-tune")
    assert (stored.filename, client.files.content(stored.id)) == ("rows.csv", ROWS.encode())
    train(trainer)
    result = job.result()
    assert (result.model, result.metrics["f1_macro"], result.raw["labels"]) == ("mood:3", 0.75, REPORT["labels"])
    assert job.resolved is not None
    assert job.progress is not None
    assert (job.resolved["report"], job.progress.done, job.progress.total, job.progress.unit) == (REPORT, 4, 4, "steps")
    [kept] = job.checkpoints()
    assert (kept.step, kept.is_best, kept.size_bytes) == (2, True, 2_500_000)


def test_a_failed_job_is_queued_again(client: Ondol, trainer: TrainerPeer, rows: Path) -> None:
    job = client.fine_tune(rows, model=MODEL, name="mood")
    with pytest.raises(StateConflict, match="only a failed job"):
        job.retry()
    trainer.refuse("row 3: no label")
    assert job.wait(timeout_s=20).status == "failed"
    assert run(["jobs", "retry", job.id]) == 0
    assert job.refresh().status == "queued"


def test_pause_and_resume(client: Ondol, trainer: TrainerPeer, rows: Path) -> None:
    job = client.fine_tune(rows, model=MODEL, name="mood")
    with pytest.raises(StateConflict, match="only a fine-tune that trains can be paused"):
        job.pause()
    trainer.check()
    begun = trainer.begin()
    assert job.pause().pause_requested_at is not None
    assert job.status == "running"
    trainer.pause(begun)
    assert job.refresh().status == "paused"
    assert not job.has_ended
    assert job.resume().status == "queued"
    with pytest.raises(StateConflict, match="only a paused job"):
        job.resume()
    assert job.cancel().status == "cancelled"
    assert job.device_released_at is not None
    with pytest.raises(JobFailed):
        job.result()


def test_an_unknown_option_is_refused_by_name_and_the_upload_is_taken_back(client: Ondol, rows: Path) -> None:
    with pytest.raises(RequestRefused) as caught:
        client.fine_tune(rows, model=MODEL, name="mood", wieght_decay=0.1)
    assert caught.value.param == "options.wieght_decay"
    assert list(client.files.list()) == []


def test_waiting_with_progress_shows_what_happens_while_it_happens(
    client: Ondol, trainer: TrainerPeer, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = client.fine_tune(rows, model=MODEL, name="mood")
    waiting = threading.Thread(target=lambda: job.wait(progress=True))
    waiting.start()
    train(trainer)
    waiting.join(timeout=20)
    assert job.status == "succeeded"
    shown = capsys.readouterr().err
    assert "warning: 1 row is there twice" in shown
    assert "step 2: f1_macro 0.7500" in shown


def submit_by_command(rows: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert run(["fine-tune", str(rows), "--model", MODEL, "--name", "mood", *more]) == 0
    said = capsys.readouterr()
    job_id = said.out.strip()
    assert said.err == f"watch it with `ondol jobs watch {job_id}`\n"
    return job_id


def test_the_command_prints_the_id_and_places_its_settings(
    client: Ondol, member: Member, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--epochs", "2", "--set", "early_stopping.patience=2", "--set", "lr_scheduler_type=cosine"]
    job_id = submit_by_command(rows, capsys, *more, "--text-column", "text", "--set", "max_length=8")
    assert client.jobs.get(job_id).status == "validating_files"
    options = member.api.database.read(lambda uow: uow.conn.execute(_OPTIONS, {"id": job_id}).scalar_one())
    assert options["hyperparameters"]["num_train_epochs"] == 2
    assert options["hyperparameters"]["lr_scheduler_type"] == "cosine"
    assert options["early_stopping"]["patience"] == 2
    assert (options["columns"]["text"], options["max_length"]) == ("text", 8)


def test_watching_ends_with_the_published_version_and_how_to_use_it(
    trainer: TrainerPeer, member: Member, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = submit_by_command(rows, capsys, "--alias", "production")
    train(trainer)
    assert run(["jobs", "watch", job_id]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "published mood:3, with the weights of step 2",
        "on the validation rows: f1_macro 0.7500, loss 0.5000",
        "the alias mood@production points to it",
        'use it: ondol classify "a text" --model mood@production',
    ]
    assert "checkpoint of step 2, 2.5 MB" in said.err
    assert run(["jobs", "watch", job_id, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["seq"] for line in lines[:-1]] == list(range(1, len(lines)))
    assert (lines[-1]["object"], lines[-1]["model"]) == ("fine_tune.result", "mood:3")


def test_refused_files_end_the_watching_with_1_and_the_reason(
    trainer: TrainerPeer, member: Member, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusing = threading.Thread(target=lambda: trainer.refuse("rows.csv has no column 'label'"))
    refusing.start()
    assert run(["fine-tune", str(rows), "--model", MODEL, "--name", "mood", "--watch"]) == 1
    refusing.join(timeout=20)
    said = capsys.readouterr()
    assert said.out == ""
    assert "is failed: invalid_payload: rows.csv has no column 'label'" in said.err.splitlines()[-1]


def test_a_program_gets_one_object_or_one_line_an_event(
    trainer: TrainerPeer, member: Member, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fine-tune", str(rows), "--model", MODEL, "--name", "mood", "--json"]
    assert run(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["object"], first["status"]) == ("job", "validating_files")
    member.http.post(f"/v1/jobs/{first['id']}/cancel")
    training = threading.Thread(target=lambda: train(trainer))
    training.start()
    assert run([*command, "--watch"]) == 0
    training.join(timeout=20)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["object"] for line in lines[1:-1]} == {"job.event"}
    assert (lines[0]["object"], lines[-1]["object"]) == ("job", "fine_tune.result")


def take_ctrl_c() -> None:
    """As in a terminal: what is started in a shell's background ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_the_watching_and_not_the_job(
    client: Ondol, trainer: TrainerPeer, rows: Path, tmp_path: Path
) -> None:
    job = client.fine_tune(rows, model=MODEL, name="mood")
    trainer.check()
    command = [sys.executable, "-m", "ondol.cli.main", "jobs", "watch", job.id]
    said = tmp_path / "said"
    with said.open("wb") as stderr:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        watching = subprocess.Popen(command, stderr=stderr, env=environment, preexec_fn=take_ctrl_c)  # noqa: PLW1509 - a signal's default and no more
        try:
            wait_until(lambda: "queued for training" in said.read_text(), within_s=30, what="the events to be shown")
            watching.send_signal(signal.SIGINT)
            assert watching.wait(timeout=20) == 130
        finally:
            watching.kill()
            watching.wait()
    assert f"job {job.id} goes on: `ondol jobs watch {job.id}` watches it again" in said.read_text()
    assert job.refresh().status == "queued"
    job.cancel()


def test_a_terminal_has_a_bar_and_a_pipe_has_plain_lines(client: Ondol, trainer: TrainerPeer, rows: Path) -> None:
    job = client.fine_tune(rows, model=MODEL, name="mood", alias="production")
    command = [sys.executable, "-m", "ondol.cli.main", "jobs", "watch", job.id]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    trainer.check()
    begun = trainer.begin()
    trainer.evaluate(begun, 2, f1_macro=0.75, loss=0.5)
    trainer.measure(begun, 3, loss=0.25, eta_s=90.0)
    terminal = OnTerminal(command, env=environment)
    piped = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        wait_until(lambda: "ETA 1:" in terminal.written, within_s=60, what="the bar to be drawn")
    finally:
        trainer.finish(begun)
        out, err = piped.communicate(timeout=60)
        code = terminal.wait(timeout_s=60)
    assert (code, piped.returncode) == (0, 0)
    assert "\x1b[" in terminal.written
    assert all(len(line) <= COLUMNS for line in terminal.lines)
    assert any(re.match(r"training ━+.* 3/4 .*best f1_macro 0\.750 ETA 1:\d\d", line) for line in terminal.lines)
    assert "published mood:3, with the weights of step 2" in terminal.lines
    lines = err.splitlines()
    assert all(character.isprintable() for line in lines for character in line)
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)
    assert "step 2: f1_macro 0.7500, loss 0.5000 - best so far" in err
    assert out.splitlines()[0] == "published mood:3, with the weights of step 2"


def test_pause_and_resume_by_command(
    client: Ondol, trainer: TrainerPeer, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = submit_by_command(rows, capsys)
    assert run(["jobs", "pause", job_id]) == 1
    assert "only a fine-tune that trains can be paused" in capsys.readouterr().err
    trainer.check()
    begun = trainer.begin()
    assert run(["jobs", "pause", job_id]) == 0
    assert f"{job_id} will pause at its next checkpoint" in capsys.readouterr().out
    assert run(["jobs", "show", job_id]) == 0
    assert "pause asked" in capsys.readouterr().out
    trainer.pause(begun)
    assert run(["jobs", "resume", job_id]) == 0
    assert capsys.readouterr().out == f"{job_id} is queued\n"
    client.jobs.cancel(job_id)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--set", "wieght_decay=1"], "did you mean weight_decay?"),
        (["--set", "early_stopping.patient=1"], "did you mean patience?"),
        (["--set", "weight_decay"], "--set takes NAME=VALUE"),
        (["--epochs", "1", "--set", "epochs=2"], "given twice"),
        (["--set", "weight_decay=11"], "options.hyperparameters.weight_decay"),
    ],
)
def test_wrong_settings_end_with_2_and_one_line(
    more: list[str], says: str, member: Member, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fine-tune", str(rows), "--model", MODEL, "--name", "mood", *more]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1


def test_without_a_server_the_command_ends_with_3(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--url", "http://127.0.0.1:1", "fine-tune", str(rows), "--model", MODEL, "--name", "mood"]) == 3
    assert "ondol up" in capsys.readouterr().err
