"""Every fenced block of README.md and docs/deploy.md is run or read by a test; this table says by which."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path

import pytest
from dotenv import dotenv_values

from ondol.client.settings import ClientSettings
from ondol.settings import CommonSettings, load_settings
from ondol.settings_table import PROCESSES, describe_settings
from tests.deploy.compose_file import COMPOSE_FILE, ROOT, load_services, named_variables
from tests.deploy.compose_merge import load_files
from tests.deploy.docker_calls import DockerCall, calls_of, hold_to_files
from tests.deploy.documents import DEPLOY, README, Block, find_block, inline_commands, read, read_blocks, run_shell

pytestmark = pytest.mark.integration

Check = Callable[[Block, Path], None]

S3_URL = {"ONDOL_STORE_URL": "s3://bucket/ondol"}
"""What the S3 file cannot be read without."""
SECRETS = {"ondol_redis_password.txt", "ondol_database_password.txt", "ondol_flower_password.txt"}


def run_by_a_shell(block: Block, checkout: Path) -> None:
    """Run as it stands; calls of Docker are held to the compose files, all else happens."""
    calls = calls_of(block.text, folder=checkout, environment={})
    assert len(calls) == len(re.findall(r"^(?:\w+=\S+ )*(?:docker|\$C) ", block.text, re.MULTILINE))
    for call in calls:
        check_call(call, checkout)
    if "make-secrets.sh" in block.text:
        assert {path.name for path in (checkout / "deploy" / "secrets").iterdir()} == SECRETS


def load_as_settings(block: Block, _checkout: Path) -> None:
    """The lines of a `.env`: every process starts with them, and each reaches a container or an image."""
    Path(".env").write_text(block.text, encoding="utf-8")
    given = variables_of(block.text)
    known = {row.name for row in describe_settings()} | named_variables(COMPOSE_FILE.read_text())
    assert given.keys() <= known
    for settings_class in PROCESSES.values():
        load_settings(settings_class)
    common = load_settings(CommonSettings)
    assert common.resolved_database_url() == given["ONDOL_DATABASE_URL"]
    assert (common.redis_url, common.store_url) == (given["ONDOL_REDIS_URL"], given["ONDOL_STORE_URL"])
    filled = json.dumps([service.fields for service in load_services(given).values()], default=str)
    assert not [name for name, value in given.items() if value not in filled]
    assert load_services(given)["worker-gpu0"].fields["hostname"] == "gpu-host-7-gpu0"


def read_with_compose_file(block: Block, checkout: Path) -> None:
    """A file beside docker-compose.yml: with it there is a third pair of worker and trainer, apart from the others."""
    assert "and the same for `trainer-gpu2`" in read(DEPLOY)
    for role in ("worker", "trainer"):
        (checkout / "more.yml").write_text(block.text.replace("worker", role), encoding="utf-8")
        services = load_files(checkout, [COMPOSE_FILE.name, "more.yml"])["services"]
        added, base = services[f"{role}-gpu2"], services[f"{role}-gpu1"]
        changed = {name for name in base if added[name] != base[name]}
        assert changed == {"hostname", "profiles", "volumes", "deploy"}
        assert (added["hostname"], added["profiles"]) == ("node-gpu2", ["gpu2"])
        assert added["volumes"] == ["gpu2:/data", "store:/store", "./models:/import:ro"]
        (device,) = added["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "device_ids": ["2"], "capabilities": ["gpu"]}


def start_by_make(block: Block, checkout: Path) -> None:
    """`make` says what it would do and does not do it; what it would start, tests/setup and all stacks here start."""
    programs = checkout / "bin"
    programs.mkdir()
    (programs / "make").write_text(f'#!/bin/sh\nexec "{shutil.which("make")}" -n -C "{ROOT}" "$@"\n', encoding="utf-8")
    (programs / "make").chmod(0o755)
    (checkout / ".venv").symlink_to(sys.prefix)
    run_shell(block.text.replace("ondol up ", "ondol up --help "), folder=checkout, environment={})


def run_by(file: str, test: str) -> Check:
    """A test of its own takes the block from the page."""

    def is_there(_block: Block, _checkout: Path) -> None:
        assert f"def {test}(" in read(file)

    return is_there


PYTHON = run_by("tests/guide/test_readme.py", "test_the_python_of_the_readme_runs_as_it_stands")
COMMANDS = run_by("tests/guide/test_readme.py", "test_the_commands_of_the_readme_run_as_they_stand")
CLUSTER = run_by("tests/deploy/test_cluster_commands.py", "test_the_cluster_commands_of_the_readme_start_a_cluster")
CLIENT = run_by(
    "tests/deploy/test_compose_runs.py",
    "test_every_service_of_the_file_runs_gets_healthy_works_and_stops_as_it_says",
)
BACKUP = run_by("tests/deploy/test_backup.py", "test_database_and_store_come_back_by_the_commands_of_the_page")
TABLE: dict[tuple[str, str, int], Check] = {
    (README, "Two commands", 1): start_by_make,
    (README, "Start it", 1): start_by_make,
    (README, "Start it", 2): COMMANDS,
    (README, "Submit work", 1): PYTHON,
    (README, "Submit work", 2): PYTHON,
    (README, "Submit work", 3): COMMANDS,
    (README, "Submit work", 4): PYTHON,
    (README, "Submit work", 5): PYTHON,
    (README, "Submit work", 6): PYTHON,
    (README, "Submit work", 7): PYTHON,
    (README, "On a GPU host", 1): run_by_a_shell,
    (README, "On a cluster", 1): CLUSTER,
    (DEPLOY, "One GPU host", 1): run_by_a_shell,
    (DEPLOY, "One GPU host", 2): CLIENT,
    (DEPLOY, "More GPUs, and MIG", 1): read_with_compose_file,
    (DEPLOY, "Without a GPU", 1): run_by_a_shell,
    (DEPLOY, "The store on S3", 1): run_by_a_shell,
    (DEPLOY, "Several hosts", 1): load_as_settings,
    (DEPLOY, "Several hosts", 2): run_by_a_shell,
    (DEPLOY, "Backup", 1): run_by_a_shell,
    (DEPLOY, "Backup", 2): BACKUP,
    (DEPLOY, "Backup", 3): BACKUP,
    (DEPLOY, "Moving to another database", 1): run_by(
        "tests/deploy/test_backup.py", "test_the_database_moves_by_the_command_of_the_page"
    ),
}
DRAWINGS = {(README, "How it flows", 1)}


def variables_of(env_file: str) -> dict[str, str]:
    """`NAME=value` lines as both Compose and the settings read them."""
    return {name: value or "" for name, value in dotenv_values(stream=StringIO(env_file)).items()}


def check_call(call: DockerCall, folder: Path, given: Mapping[str, str] = S3_URL) -> None:
    """A call names files, profiles, services, variables and volumes that are there."""
    model = hold_to_files(call, folder, given)
    allowed = named_variables(COMPOSE_FILE.read_text())
    for name in call.variables:
        assert name in allowed, (call, name)
    volumes = {f"{model['name']}_{name}" for name in model["volumes"]}
    for source in (mount.split(":")[0] for mount in call.mounts):
        assert source in volumes or Path(source).is_dir(), call


def blocks() -> list[Block]:
    return [block for document in (README, DEPLOY) for block in read_blocks(document) if block.key not in DRAWINGS]


@pytest.mark.parametrize("block", blocks(), ids=lambda block: "-".join(map(str, block.key)))
def test_a_block_of_the_pages_can_be_followed(block: Block, checkout: Path) -> None:
    assert block.key in TABLE, f"say in TABLE how this block is tested:\n{block.text}"
    TABLE[block.key](block, checkout)


def test_the_table_names_no_block_that_is_gone() -> None:
    assert {block.key for block in blocks()} == TABLE.keys()


@pytest.mark.parametrize("document", [README, DEPLOY, "docker-compose.yml", "deploy/compose.s3.yml"])
def test_calls_of_docker_in_sentences_and_comments_name_what_is_there(document: str, checkout: Path) -> None:
    commented = re.findall(r"^# +(docker .*)$", read(document), re.MULTILINE)
    for command in commented or inline_commands(document, "docker"):
        (call,) = calls_of(command, folder=checkout, environment={})
        check_call(call, checkout)


def test_profiles_in_sentences_are_those_of_the_file() -> None:
    known = {profile for service in load_services().values() for profile in service.profiles} | {"gpu2"}
    for document in (README, DEPLOY):
        assert set(re.findall(r"--profile (\w+)", read(document))) <= known
        assert set(re.findall(r"COMPOSE_PROFILES=(\w+)", read(document))) <= known


@pytest.mark.parametrize("document", [README, DEPLOY])
def test_variables_that_a_page_names_are_read_by_something(document: str) -> None:
    named = set(re.findall(r"\b(ONDOL_[A-Z0-9_]*[A-Z0-9])\b(?!_)", read(document)))
    known = {row.name for row in describe_settings()} | named_variables(COMPOSE_FILE.read_text())
    known |= {f"ONDOL_{name.upper()}" for name in ClientSettings.model_fields}
    assert named <= known


@pytest.mark.parametrize("document", [README, DEPLOY])
def test_the_figures_of_openvino_say_where_it_comes_from(document: str) -> None:
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    assert any(line.startswith("openvino") for line in extras["openvino"])
    page = read(document)
    assert "ondol[openvino]" in page
    assert "EXTRA_PACKAGES=openvino" in page
    assert re.search(r"\[all\]\" \$\{EXTRA_PACKAGES\}", read("Dockerfile")), "the worker's image installs it"


def test_one_flower_is_started_for_several_hosts() -> None:
    commands = find_block(DEPLOY, "Several hosts", 2).text.splitlines()
    assert {line.partition("#")[2].strip() for line in commands if " flower" in line} == {"on one"}


@pytest.mark.parametrize(
    "wrong",
    [
        "docker compose --profile gpus up -d",
        "docker compose up --deatch",
        "docker compose exec apis ondol keys ls",
        "docker compose -f compose.s3.yml up -d",
        "docker compose --profile gpu up -d worker-cpu",
        "TORCH_INDX=x docker compose build",
        "docker run --rm -v ondol_stor:/store alpine tar",
        "docker composes up",
        "cat no-such-file",
    ],
)
def test_a_wrong_command_would_be_noticed(wrong: str, checkout: Path) -> None:
    block = Block("a page", "a heading", 1, "text", wrong)
    with pytest.raises((AssertionError, ValueError, FileNotFoundError)):
        run_by_a_shell(block, checkout)
