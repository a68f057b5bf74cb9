"""No setting promises what no code does: each is read somewhere outside of the file that defines it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from ondol.settings_table import PROCESSES

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ROOT / "ondol" / "settings.py"
READ_BY_THE_SOURCES = {"secrets_dir"}
"""Names the folder of further settings; what reads the settings reads it."""


def attributes(tree: ast.AST) -> set[str]:
    """Names that are read as attributes."""
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def sources() -> Iterator[Path]:
    for package in ("ondol", "models_store", "workers", "api"):
        yield from (path for path in (ROOT / package).rglob("*.py") if path != SETTINGS)


def read_outside() -> set[str]:
    """What other files read of the settings, directly or by a method of theirs that they call."""
    read = set().union(*(attributes(ast.parse(path.read_text(encoding="utf-8"))) for path in sources()))
    for node in ast.walk(ast.parse(SETTINGS.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name in read:
            read |= attributes(node)
    return read


def test_every_setting_is_read_by_something() -> None:
    named = {name for settings in PROCESSES.values() for name in settings.model_fields}
    assert named - read_outside() - READ_BY_THE_SOURCES == set()
