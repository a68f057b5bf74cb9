"""Where results go: a file that cannot be written is told before any work; a lost server leaves the id of the job."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ondol import ConnectionFailed, JobFailed, Ondol
from ondol.cli import connection
from ondol.cli.main import run
from tests.client.loopback import Asked, Loopback, Told, listening, told_json
from tests.client.scripted_server import error_json, job_json

pytestmark = pytest.mark.integration

JOB = "job_01k9zv6t0m3x5r7c2b8d4f6g1h"
LIMIT_S = 60


def nothing_there(_: Asked) -> Told:
    return told_json(404, error_json("not_found"))


def accept_and_fall_silent(asked: Asked) -> Told | None:
    """A server that takes files and jobs, and is gone when it is asked for anything else."""
    if asked.method == "POST" and asked.path == "/v1/jobs":
        return told_json(202, job_json(JOB))
    return None


@pytest.fixture
def server() -> Iterator[Loopback]:
    with listening(nothing_there) as started:
        yield started


@pytest.fixture
def vanishing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    monkeypatch.setattr(connection, "_MAX_RETRIES", 0)
    with listening(accept_and_fall_silent) as started:
        yield started


@pytest.mark.parametrize("name", ["", "missing/vectors.jsonl", "text.txt/vectors.jsonl"])
@pytest.mark.parametrize(
    "command",
    [
        ["embed", "a"],
        ["embed", "a", "b", "--job"],
        ["embed", "a", "--format", "parquet"],
        ["embed", "--file", "rows.csv"],
        ["classify", "a", "--model", "m"],
        ["classify", "--file", "rows.csv", "--model", "m"],
        ["tag", "a", "--model", "m"],
        ["jobs", "result", JOB],
        ["files", "get", "file_1"],
    ],
    ids=" ".join,
)
def test_an_output_that_cannot_be_written_is_told_before_anything_is_sent(
    command: list[str],
    name: str,
    server: Loopback,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("text\na\n")
    (tmp_path / "text.txt").write_text("a file where a folder is meant")
    assert run(["--url", server.url, *command, "--output", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ondol: cannot write ")
    assert len(error.splitlines()) == 1
    assert server.asked == []


def test_a_device_is_never_replaced_by_a_file(
    server: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "out"
    link.symlink_to("/dev/null")
    assert run(["--url", server.url, "jobs", "result", JOB, "--output", str(link)]) == 2
    assert "no regular file" in capsys.readouterr().err
    assert link.is_symlink()


def test_an_output_that_breaks_while_it_is_written_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    vector = {"index": 0, "embedding": "AACAPw=="}  # one float32
    with listening(lambda _: told_json(200, {"object": "list", "data": [vector], "model": "m:1"})) as server:
        assert run(["--url", server.url, "embed", "a", "-m", "m", "--output", "/dev/full"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ondol: cannot write /dev/full: No space left")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "command", [["embed", "a", "--format", "parquet"], ["embed", "a", "--job"], ["classify", "a", "-m", "m", "--job"]]
)
def test_who_loses_the_server_is_told_the_id_of_the_job(
    command: list[str], vanishing: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--url", vanishing.url, *command, "--output", str(tmp_path / "result")]) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ondol: cannot reach ")
    assert f"; job {JOB} goes on: `ondol jobs result {JOB}`" in error


def test_the_id_of_a_watched_job_stands_there_at_once(
    vanishing: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["--url", vanishing.url, "embed", "a", "--output", str(tmp_path / "vectors.parquet")])
    assert capsys.readouterr().err.splitlines()[0] == JOB


def test_the_sdk_names_a_job_that_it_could_not_cancel(vanishing: Loopback) -> None:
    with Ondol(vanishing.url, max_retries=0) as client, pytest.raises(ConnectionFailed) as caught:
        client.embed(["a"], model="m", as_job=True)
    assert caught.value.job_id == JOB
    assert JOB in caught.value.__notes__[0]
    assert vanishing.seen[-1] == f"POST /v1/jobs/{JOB}/cancel"


def test_a_job_that_has_ended_does_not_go_on() -> None:
    def respond(asked: Asked) -> Told:
        if asked.path == "/v1/jobs":
            return told_json(202, job_json(JOB))
        if asked.path.endswith("/cancel"):
            return told_json(409, error_json("illegal_transition"))
        return told_json(200, job_json(JOB, "failed"))

    with listening(respond) as server, Ondol(server.url) as client, pytest.raises(JobFailed) as caught:
        client.embed(["a"], model="m", as_job=True)
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("command", [["jobs", "ls", "--json"], ["jobs", "ls"], ["jobs", "events", JOB]])
def test_a_reader_that_has_seen_enough_is_no_error(command: list[str]) -> None:
    jobs = [job_json(f"job_{number}", metadata={"said": "x" * 10_000}) for number in range(20)]
    event = {"object": "job.event", "seq": 1, "created_at": 1790000000.0, "type": "log", "data": {"line": "x" * 90_000}}

    def respond(asked: Asked) -> Told:
        page = [event] if "events" in asked.path else jobs
        return told_json(200, {"object": "list", "data": page, "has_more": False})

    with listening(respond) as server:
        call = [sys.executable, "-m", "ondol.cli.main", "--url", server.url, *command]
        with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            error = process.stderr.read()
            assert process.wait(LIMIT_S) == 0
    assert error == b""
    assert len(server.asked) == 1


def test_the_end_of_a_short_output_is_no_error_either() -> None:
    """What fits the buffer is written when the process ends."""
    with listening(lambda _: told_json(200, {"object": "list", "data": [], "has_more": False})) as server:
        call = [sys.executable, "-m", "ondol.cli.main", "--url", server.url, "jobs", "ls", "--json"]
        with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            error = process.stderr.read()
            assert process.wait(LIMIT_S) == 0
    assert error == b""


def test_a_command_that_was_started_without_standard_output_ends_well() -> None:
    call = ["sh", "-c", '"$@" >&-', "sh", sys.executable, "-m", "ondol.cli.main", "--help"]
    done = subprocess.run(call, stderr=subprocess.PIPE, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_busy_server_is_never_asked_again_in_no_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(connection, "_MAX_RETRIES", 0)
    told = replace(told_json(429, error_json("overloaded")), headers={"retry-after-ms": "300", "retry-after": "1"})
    with listening(lambda _: told) as server:
        assert run(["--url", server.url, "jobs", "ls"]) == 1
    assert "try again in 1 s" in capsys.readouterr().err


def test_a_disk_that_is_full_is_one_line() -> None:
    with listening(lambda _: told_json(200, {"object": "list", "data": [], "has_more": False})) as server:
        call = [sys.executable, "-m", "ondol.cli.main", "--url", server.url, "jobs", "ls", "--json"]
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stderr) == (1, b"ondol: cannot write: No space left on device\n")
