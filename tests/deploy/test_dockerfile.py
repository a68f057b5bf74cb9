"""The Dockerfile, read: nobody builds it here, so what a build would stumble over is looked for."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.compose_file import ROOT, load_compose

STOCK_ARGUMENTS = {"PIP_INDEX_URL", "PYTHON_IMAGE", "TORCH_INDEX", "EXTRA_PACKAGES"}
WHEEL_LIMIT_S = 120


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of the Dockerfile, continuation lines joined; `stage` is the stage that it stands in."""

    word: str
    rest: str
    stage: str


def read_dockerfile() -> list[Instruction]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found, stage = [], ""
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stage = rest.split(" AS ")[1]
        found.append(Instruction(word, " ".join(rest.split()), stage))
    return found


def context_copies() -> list[Instruction]:
    """COPY from the build context, not from another stage."""
    return [one for one in read_dockerfile() if one.word == "COPY" and not one.rest.startswith("--from=")]


def copy_wheel_sources(folder: Path) -> None:
    """What the stage `wheel` copies, as it would lie in there."""
    for copied in (one for one in context_copies() if one.stage == "wheel"):
        *sources, target = copied.rest.split()
        for source in sources:
            goal = folder / target / source if target == "./" else folder / target
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, goal, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, goal)


@pytest.mark.unit
def test_stages_come_from_stages_before_them_and_the_last_one_is_the_server() -> None:
    known: list[str] = []
    for one in read_dockerfile():
        if one.word == "FROM":
            source, _, name = one.rest.partition(" AS ")
            assert source == "${PYTHON_IMAGE}" or source in known
            known.append(name)
        for stage in re.findall(r"--from=(\S+)", one.rest):
            assert stage in known[:-1]
    assert known[-1] == "server"


@pytest.mark.unit
def test_everything_that_is_copied_is_there_and_nothing_else_enters_a_build() -> None:
    needed = {source for copied in context_copies() for source in copied.rest.split()[:-1]}
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == needed
    assert all((ROOT / source).exists() for source in needed)


@pytest.mark.unit
def test_packages_are_installed_at_the_versions_that_were_tested() -> None:
    installs = [part for one in read_dockerfile() if one.word == "RUN" for part in one.rest.split("&&")]
    installs = [part for part in installs if "pip install" in part]
    assert len(installs) == 3
    for part in installs:
        assert part.split()[:4] == ["/opt/ondol/bin/python", "-m", "pip", "install"]
        assert "-c /build/constraints.txt" in part
        assert not re.search(r"https?://", part)


@pytest.mark.unit
def test_build_arguments_are_declared_where_they_are_used_and_compose_passes_only_known_ones() -> None:
    declared: dict[str, set[str]] = {}
    for one in read_dockerfile():
        if one.word == "ARG":
            declared.setdefault(one.stage, set()).add(one.rest.split("=")[0])
        for name in re.findall(r"\$\{([A-Z_]+)", one.rest):
            assert name in declared.get(one.stage, set()) | declared[""], (one.stage, name)
    assert set().union(*declared.values()) == STOCK_ARGUMENTS
    for service in load_compose()["services"].values():
        assert set(service.get("build", {}).get("args", {})) <= STOCK_ARGUMENTS


@pytest.mark.unit
def test_images_do_not_run_as_root_and_match_the_user_of_the_compose_file() -> None:
    instructions = read_dockerfile()
    for stage in ("server", "worker"):
        (user,) = (one.rest for one in instructions if one.word == "USER" and one.stage == stage)
        assert user == "10001:10001"
        last = [one.word for one in instructions if one.stage == stage][-1]
        assert last == "CMD"
    users = {one["user"] for one in load_compose()["services"].values() if "build" in one}
    assert users == {"10001:10001"}
    made = next(one.rest for one in instructions if one.word == "RUN" and "useradd" in one.rest)
    assert "--uid 10001" in made
    assert "-o ondol -g ondol /data /store" in made


@pytest.mark.unit
def test_the_server_image_has_no_torch() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    server = {canonicalize_name(Requirement(line).name) for line in extras["server"]}
    assert not server & {"torch", "transformers", "accelerate", "scikit-learn"}
    runs = {one.stage: one.rest for one in read_dockerfile() if one.word == "RUN" and "ondol-*.whl" in one.rest}
    assert "ondol-*.whl)[server]" in runs["server-packages"]
    assert "ondol-*.whl)[all]" in runs["worker-packages"]


@pytest.mark.integration
def test_what_the_build_copies_makes_a_wheel_with_all_packages_and_their_data(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    copy_wheel_sources(source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    subprocess.run(command, cwd=source, check=True, timeout=WHEEL_LIMIT_S)
    (wheel,) = tmp_path.glob("ondol-*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    packages = ("ondol", "models_store", "workers", "api")
    expected = {
        str(path.relative_to(source))
        for package in packages
        for path in (source / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert inside == expected
    assert "ondol/sql/migrations/script.py.mako" in inside
