"""Fails when a file has more than 500 lines or a function more than 60; `python -m tools.check_sizes [ROOT]`.

`tools/sizes_baseline.json` lists exceptions with their size. It may only go down: an entry that grew fails, and so
does one that is larger than the thing it stands for. Migrations may have long functions.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
FOLDERS = ("api", "bench", "models_store", "ondol", "tests", "tools", "workers")
FILE_SUFFIXES = frozenset({".css", ".html", ".js", ".py", ".sh"})
BASELINE = Path("tools", "sizes_baseline.json")
# A migration is one flat list of statements that is never edited again; cutting it up would hide their order.
FLAT_LISTS = "ondol/sql/migrations/versions/"


def find_problems(root: Path) -> list[str]:
    """One line for each size over its limit, and for each line of the baseline that is too generous."""
    baseline = _read_baseline(root / BASELINE)
    files: dict[str, int] = {}
    functions: dict[str, int] = {}
    for path in _source_files(root):
        name = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8")
        files[name] = text.count("\n") + (not text.endswith("\n") and text != "")
        if path.suffix == ".py" and not name.startswith(FLAT_LISTS):
            functions.update(_function_sizes(name, ast.parse(text, filename=name)))
    return [
        *_compare(files, baseline["files"], limit=MAX_FILE_LINES),
        *_compare(functions, baseline["functions"], limit=MAX_FUNCTION_LINES),
    ]


def main(arguments: list[str]) -> int:
    """Print the problems; 1 if there are any."""
    problems = find_problems(Path(arguments[0] if arguments else "."))
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def _source_files(root: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            parts = path.relative_to(root).parts
            # Hidden folders hold environments of others, such as a benchmark's peer.
            if path.suffix in FILE_SUFFIXES and "__pycache__" not in parts and not any(p[0] == "." for p in parts):
                yield path


def _function_sizes(name: str, tree: ast.AST, prefix: str = "") -> dict[str, int]:
    sizes: dict[str, int] = {}
    for node in ast.iter_child_nodes(tree):
        inner = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{prefix}{node.name}."
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            sizes[f"{name}::{prefix}{node.name}"] = node.end_lineno - node.lineno + 1
        sizes.update(_function_sizes(name, node, inner))
    return sizes


def _compare(sizes: Mapping[str, int], allowed: Mapping[str, int], *, limit: int) -> Iterator[str]:
    for name, size in sizes.items():
        if size > max(limit, allowed.get(name, 0)):
            yield f"{name}: {size} lines; at most {max(limit, allowed.get(name, 0))} are allowed"
    for name, bound in allowed.items():
        if sizes.get(name, 0) < bound:
            yield f"{BASELINE}: {name} has {sizes.get(name, 0)} lines now; lower its entry of {bound} or remove it"


def _read_baseline(path: Path) -> dict[str, dict[str, int]]:
    loaded: dict[str, dict[str, int]] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
