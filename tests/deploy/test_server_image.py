"""The server image holds what its processes import: `ondol[server]`, and nothing that only a checkout has."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.integration

PROCESSES = (
    "api.main",
    "api.intake.main",
    "ondol.control.flower_main",
    "ondol.control.healthcheck",
    "ondol.control.reconciler_main",
    "ondol.cli.main",
    "ondol.control.administration",
)
IMPORT = """
import importlib, json, sys

class Missing:
    def __init__(self, names):
        self.names = names
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is not in the image", name=name)

given = json.load(sys.stdin)
sys.meta_path.insert(0, Missing(set(given["missing"])))
for name in given["processes"]:
    importlib.import_module(name)
"""


def installed_with(requirement: Requirement) -> set[str]:
    """Names of all distributions that pip would install for it here."""
    found: set[str] = set()
    todo = [(requirement.name, frozenset(requirement.extras))]
    seen = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found.add(canonicalize_name(name))
        for line in metadata.requires(name) or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                todo.append((needed.name, frozenset(needed.extras)))
    return found


def test_the_server_processes_start_with_what_is_installed_in_their_image() -> None:
    there = installed_with(Requirement("ondol[server]"))
    owners = metadata.packages_distributions()
    missing = [name for name, names in owners.items() if not there & {canonicalize_name(one) for one in names}]
    assert {"torch", "transformers", "pytest"} <= set(missing)
    given = json.dumps({"missing": missing, "processes": PROCESSES})
    done = subprocess.run([sys.executable, "-c", IMPORT], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
