"""Texts for benchmarks: paragraphs of the standard library's docstrings. Real, skewed in length, no download."""

from __future__ import annotations

import ast
import os
import sysconfig
from pathlib import Path

MIN_CHARS = 12
MAX_CHARS = 1_200


def docstring_texts(num: int) -> list[str]:
    """`num` distinct paragraphs, the same ones for the same Python; ValueError if there are not so many."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, None] = {}
    for file in sorted(folder.rglob("*.py")):
        if "site-packages" in file.parts or "test" in file.parts or os.sep + "idlelib" in str(file):
            continue
        for text in _paragraphs(file):
            found[text] = None
            if len(found) == num:
                return list(found)
    raise ValueError(f"the standard library has only {len(found)} paragraphs")


def _paragraphs(file: Path) -> list[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # files of another Python version that lie in the library's folder
        return []
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                text = " ".join(paragraph.split())
                if MIN_CHARS <= len(text) <= MAX_CHARS:
                    texts.append(text)
    return texts
