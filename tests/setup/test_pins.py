from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines), "a package is pinned twice"
    return {canonicalize_name(name): version for name, version in found.items()}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in (*project["dependencies"], *extras) if not line.startswith("ondol[")]


def test_torch_is_pinned_first_without_a_local_version() -> None:
    assert next(iter(pins().items())) == ("torch", "2.13.0")


def test_every_requirement_has_an_exact_version_within_its_bounds() -> None:
    for requirement in requirements():
        version = pins()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


def test_no_package_index_is_named() -> None:
    for name in ("constraints.txt", "pyproject.toml", "Makefile"):
        assert "index" + "-url" not in (ROOT / name).read_text(), name
