"""What the pages' `docker …` commands ask for. Docker is not here: the shell runs a program that writes down its call.

A call is then read as strictly as Docker would read it, and held to the compose files that it names.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests.deploy.compose_file import COMPOSE_FILE
from tests.deploy.compose_merge import load_files
from tests.deploy.documents import run_shell

_CALLS = "docker-calls.jsonl"
_OF_THE_SHELL = {"OLDPWD", "PWD", "SHLVL", "_"}
_WRITES_DOWN = """#!{python}
import json, os, sys
with open({calls!r}, "a", encoding="utf-8") as file:
    file.write(json.dumps({{"arguments": sys.argv[1:], "environment": dict(os.environ)}}) + "\\n")
"""


@dataclass(frozen=True, slots=True)
class DockerCall:
    """One call. `services` are those named; `command` is what it runs in a container; `variables` were set for it."""

    subcommand: str
    files: tuple[str, ...] = (COMPOSE_FILE.name,)
    profiles: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()


class _Parser(argparse.ArgumentParser):
    """Knows the options of the commands that the pages use, no others and no abbreviations."""

    def __init__(self, prog: str, **_: object) -> None:
        super().__init__(prog=prog, add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}")

    def flags(self, *names: str) -> None:
        """Options without a value."""
        for name in names:
            self.add_argument(name, action="store_true")


def calls_of(script: str, *, folder: Path, environment: Mapping[str, str]) -> list[DockerCall]:
    """The calls of `docker` that a script makes when a shell runs it in `folder`."""
    program, calls = folder / "bin" / "docker", folder / _CALLS
    program.parent.mkdir(exist_ok=True)
    program.write_text(_WRITES_DOWN.format(python=sys.executable, calls=str(calls)), encoding="utf-8")
    program.chmod(0o755)
    calls.write_text("", encoding="utf-8")
    run_shell(script, folder=folder, environment=environment)
    lines = [json.loads(line) for line in calls.read_text(encoding="utf-8").splitlines()]
    known = os.environ.keys() | environment.keys() | _OF_THE_SHELL
    return [read_call(line["arguments"], sorted(line["environment"].keys() - known)) for line in lines]


def read_call(arguments: Sequence[str], variables: Sequence[str] = ()) -> DockerCall:
    """One call; ValueError where Docker would not understand it."""
    if arguments[0] == "run":
        return _read_run(arguments[1:])
    if arguments[0] != "compose":
        raise ValueError(f"docker {arguments[0]}")
    read = _compose_parser().parse_args(arguments[1:])
    service = (read.service,) if hasattr(read, "service") else ()
    return DockerCall(
        read.subcommand,
        files=tuple(read.file or (COMPOSE_FILE.name,)),
        profiles=tuple(read.profile or ()),
        services=service or tuple(getattr(read, "services", ())),
        command=tuple(getattr(read, "command", ())),
        variables=tuple(variables),
    )


def hold_to_files(call: DockerCall, folder: Path, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The compose files of a call, merged; AssertionError if they lack a profile or service that it names."""
    model = load_files(folder, call.files, variables)
    services: dict[str, Any] = model["services"]
    profiles = {profile for fields in services.values() for profile in fields.get("profiles", [])}
    assert set(call.profiles) <= profiles, (call, profiles)
    assert set(call.services) <= services.keys(), (call, sorted(services))
    if call.profiles:  # a service that a profile other than these starts would be started without what it needs
        for name in call.services:
            assert set(services[name].get("profiles", call.profiles)) & set(call.profiles), (call, name)
    return model


def _read_run(arguments: Sequence[str]) -> DockerCall:
    parser = _Parser("docker run")
    parser.flags("--rm")
    parser.add_argument("--gpus", choices=["all"])
    parser.add_argument("-v", "--volume", action="append", default=[])
    parser.add_argument("image")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    read = parser.parse_args(arguments)
    return DockerCall("docker run", command=tuple(read.command), mounts=tuple(read.volume))


def _compose_parser() -> _Parser:
    parser = _Parser("docker compose")
    parser.add_argument("-f", "--file", action="append")
    parser.add_argument("--profile", action="append")
    commands = parser.add_subparsers(dest="subcommand", required=True)
    for name, flags in {"up": ("-d", "--build", "--no-deps"), "ps": (), "build": (), "stop": ()}.items():
        command = commands.add_parser(name)
        command.flags(*flags)
        command.add_argument("services", nargs="*")
    for name, flags in {"exec": ("-T",), "run": ("--rm", "--no-deps")}.items():
        command = commands.add_parser(name)
        command.flags(*flags)
        command.add_argument("service")
        command.add_argument("command", nargs=argparse.REMAINDER)
    return parser
