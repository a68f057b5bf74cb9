"""The command line says what to do next in one line, and its exit code says whose turn it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperCommand, TyperGroup

from ondol.cli.main import app, run

pytestmark = pytest.mark.unit

NO_SERVER = ["--url", "http://127.0.0.1:1"]


def _commands(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], TyperCommand]]:
    if isinstance(command, TyperGroup):
        for name, child in command.commands.items():
            yield from _commands(child, (*path, name))
    elif isinstance(command, TyperCommand):
        yield path, command


COMMANDS = dict(_commands(typer.main.get_command(app)))


def test_every_promised_command_is_there() -> None:
    names = {" ".join(path) for path in COMMANDS}
    single = {"up", "api", "worker", "trainer", "reconciler", "embed", "classify", "tag", "fine-tune", "doctor", "demo"}
    steering = ("cancel", "pause", "resume", "retry", "rm")
    jobs = {f"jobs {verb}" for verb in ("ls", "show", "watch", "result", "events", *steering)}
    models = {f"models {verb}" for verb in ("ls", "show", "import", "export", "alias", "rm", "gc")}
    keys = {f"keys {verb}" for verb in ("create", "ls", "revoke")}
    files = {f"files {verb}" for verb in ("put", "ls", "rm")}
    assert names >= single | jobs | models | files | keys | {"db upgrade", "db current"}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_shows_an_example_and_json(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Example:" in shown
    assert "--json" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["jobs", "ls", "--nope"],
        ["jobs", "show"],
        ["embed"],
        ["embed", "a", "--file", "b"],
        ["classify", "a"],
        ["classify", "a", "--model", "Not A Model"],
        ["tag", "--model", "m"],
        ["tag", "a", "--model", "m", "--aggregation", "most"],
        ["jobs", "ls", "--status", "x"],
    ],
)
def test_wrong_use_ends_with_2_and_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["embed", "a"], ["classify", "a", "-m", "m"], ["jobs", "ls"], ["models", "ls"]])
def test_no_server_ends_with_3_and_says_how_to_start_one(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*NO_SERVER, *arguments]) == 3
    error = capsys.readouterr().err
    assert "ondol up" in error
    assert len(error.splitlines()) == 1


def test_a_file_that_is_no_text_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "texts"
    file.write_bytes(b"\xff\xfe\x00")
    assert run([*NO_SERVER, "embed", "--file", str(file)]) == 2
    assert "not UTF-8" in capsys.readouterr().err
