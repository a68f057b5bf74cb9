"""The table of `docs/reliability.md` is whole, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.cluster import REPOSITORY

pytestmark = pytest.mark.unit

NUM_SCENARIOS = 45
WHERE = ("`make test`", "`make test`, longer by `-m long_chaos`", "`-m long_chaos`")
PAGE = REPOSITORY / "docs" / "reliability.md"
_ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def _rows() -> dict[int, tuple[str, str, str, str]]:
    """Injection, outcome, tests and place of each row, by number."""
    return {int(row[1]): (row[2], row[3], row[4], row[5]) for row in _ROW.finditer(PAGE.read_text(encoding="utf-8"))}


@cache
def _tests_in(path: Path) -> dict[str, bool]:
    """The test functions of a file, and whether all of a test is left out of `make test`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    marks = [ast.unparse(node.value) for node in tree.body if isinstance(node, ast.Assign) and _is_marks(node)]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {
        node.name: any(
            "mark.long_chaos" in text and "param(" not in text
            for text in [*marks, *map(ast.unparse, node.decorator_list)]
        )
        for node in functions
        if node.name.startswith("test_")
    }


def _is_marks(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets)


def test_every_scenario_has_a_row() -> None:
    assert sorted(_rows()) == list(range(1, NUM_SCENARIOS + 1))


@pytest.mark.parametrize("number", range(1, NUM_SCENARIOS + 1))
def test_every_test_that_a_row_names_is_there_and_runs_where_it_says(number: int) -> None:
    _, _, tests, where = _rows()[number]
    named = _TEST.findall(tests)
    if where.startswith("not here"):
        assert not named and len(where) > len("not here: "), "a row without a test says why"
        return
    assert where in WHERE
    assert named and tests.count("::") == len(named)
    is_left_out = []
    for path, name in named:
        assert (REPOSITORY / path).is_file(), path
        found = _tests_in(REPOSITORY / path)
        assert name in found, f"{path} has no {name}"
        is_left_out.append(found[name])
    assert all(is_left_out) == (where == "`-m long_chaos`"), where
