"""Every command's help has an example that parses; pages and shells know the same commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from ondol.cli import completion
from ondol.cli.main import app
from tests.client.scripted_server import ScriptedServer, client_of

pytestmark = pytest.mark.unit

CLI_PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
_EXAMPLE = re.compile(r"Example: (.+)")


def _commands(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], TyperCommand]]:
    if isinstance(command, TyperGroup):
        for name, child in command.commands.items():
            yield from _commands(child, (*path, name))
    elif isinstance(command, TyperCommand):
        yield path, command


COMMANDS = dict(_commands(typer.main.get_command(app)))


def words_of(line: str) -> list[str]:
    """The arguments behind `ondol` in a line of a shell: without variables before it, pipes and redirections behind."""
    inner = re.search(r"\$\((.*)\)", line)
    words = shlex.split(inner[1] if inner else line, comments=True)
    begin = words.index("ondol") + 1
    end = next((place for place, word in enumerate(words) if place > begin and word in ("|", ">", "<")), len(words))
    return words[begin:end]


def parse(words: list[str]) -> tuple[str, ...]:
    """The path of the command that the words name; fails where its parser refuses them. Runs nothing."""
    command: object = typer.main.get_command(app)
    path: tuple[str, ...] = ()
    while isinstance(command, TyperGroup):
        command, path = command.commands[words[0]], (*path, words[0])
        words = words[1:]
    assert isinstance(command, TyperCommand)
    command.make_context(" ".join(path), words)
    return path


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_example_of_the_help_parses_as_that_command(path: tuple[str, ...]) -> None:
    found = _EXAMPLE.search(COMMANDS[path].help or "")
    assert found is not None
    assert parse(words_of(found[1])) == path


def test_the_page_shows_every_command_and_its_lines_parse() -> None:
    page = CLI_PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `ondol ([a-z -]+)` \|.*\| `(.+)` \|$", page, flags=re.MULTILINE)
    shown = {tuple(name.split()): example for name, example in rows}
    assert set(shown) == set(COMMANDS)
    for path, example in shown.items():
        assert parse(words_of(example)) == path


def complete(words: str, place: int) -> list[str]:
    environment = {**os.environ, "_ONDOL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(place)}
    command = [sys.executable, "-m", "ondol.cli.main"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split()


def test_a_shell_completes_commands_and_shows_no_error_without_a_server() -> None:
    assert "watch" in complete("ondol jobs ", 2)
    assert complete("ondol --url http://127.0.0.1:1 jobs watch ", 5) == []


def test_references_of_a_model_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = [{"id": "sentiment:1"}, {"id": "sentiment:2"}]
    aliases = {"default": "sentiment:1", "production": "sentiment:2"}
    listed = {"id": "sentiment", "task": "text-classification", "aliases": aliases, "versions": versions}
    server = ScriptedServer([httpx.Response(200, json={"object": "list", "data": [listed, {"id": "other"}]})])
    monkeypatch.setattr(completion, "Ondol", lambda *_, **__: client_of(server))
    context = typer.Context(typer.main.get_command(app))
    found = [text for text, _ in completion.models(context, "sentiment")]
    assert found == ["sentiment", "sentiment@default", "sentiment@production", "sentiment:1", "sentiment:2"]
