from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.check_sizes import BASELINE, find_problems, main

pytestmark = pytest.mark.unit


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "ondol").mkdir()
    (tmp_path / "tools").mkdir()
    write_baseline(tmp_path, files={}, functions={})
    return tmp_path


def write_baseline(tree: Path, *, files: dict[str, int], functions: dict[str, int]) -> None:
    (tree / BASELINE).write_text(json.dumps({"files": files, "functions": functions}))


def long_function(num_lines: int) -> str:
    return "class A:\n    def f(self):\n" + "        x = 1\n" * (num_lines - 1)


def test_files_and_functions_at_the_limit_pass(tree: Path) -> None:
    (tree / "ondol" / "a.py").write_text("x = 1\n" * 500)
    (tree / "ondol" / "b.py").write_text(long_function(60))
    assert find_problems(tree) == []


def test_a_long_file_fails(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "ondol" / "a.py").write_text("x = 1\n" * 501)
    assert main([str(tree)]) == 1
    assert capsys.readouterr().out == "ondol/a.py: 501 lines; at most 500 are allowed\n"


def test_a_long_method_fails_by_its_name(tree: Path) -> None:
    (tree / "ondol" / "a.py").write_text(long_function(61))
    assert find_problems(tree) == ["ondol/a.py::A.f: 61 lines; at most 60 are allowed"]


def test_the_baseline_allows_what_it_lists_and_may_only_go_down(tree: Path) -> None:
    (tree / "ondol" / "a.py").write_text(long_function(70))
    write_baseline(tree, files={}, functions={"ondol/a.py::A.f": 70})
    assert find_problems(tree) == []
    write_baseline(tree, files={}, functions={"ondol/a.py::A.f": 71})
    assert len(find_problems(tree)) == 1
    write_baseline(tree, files={}, functions={"ondol/a.py::A.f": 69})
    assert len(find_problems(tree)) == 1
