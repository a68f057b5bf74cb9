"""Which files a version may hold: safetensors, JSON, text and tokenizer files, under plain relative paths."""

from __future__ import annotations

import re
from pathlib import Path

from models_store.safetensors_header import read_header
from ondol.contract.errors import ModelRefused

SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".md"})
MAX_PATH_CHARS = 240
MAX_PATH_PARTS = 6
MAX_FILES = 2_000
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")


def check_path(path: str) -> str:
    """`path` if it is a plain relative path of an allowed kind; else ModelRefused, naming it."""
    parts = path.split("/")
    is_plain = len(path) <= MAX_PATH_CHARS and len(parts) <= MAX_PATH_PARTS and all(map(_PART.fullmatch, parts))
    if not is_plain:
        raise ModelRefused(
            f"{path[:MAX_PATH_CHARS]!r} is not a plain relative path; use letters, digits, '.', '_' and '-'"
        )
    if Path(path).suffix not in SUFFIXES:
        raise ModelRefused(
            f"{path} cannot be stored: a version holds {', '.join(sorted(SUFFIXES))} files only; leave it out"
        )
    return path


def list_folder(folder: Path) -> list[str]:
    """Relative paths of all files under `folder`, sorted and checked; ModelRefused for anything that may not be stored.

    Links are refused, for they could bring in files from elsewhere; weights must have a safetensors header.
    """
    if not folder.is_dir():
        raise ModelRefused(f"{folder.name} is not a folder")
    paths = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ModelRefused(f"{name} is a link; replace it by the file that it points to")
        if path.is_dir():
            continue
        if not path.is_file():
            raise ModelRefused(f"{name} is not an ordinary file; leave it out")
        paths.append(check_path(name))
        if path.suffix == ".safetensors":
            read_header(path, name)
    if not paths or len(paths) > MAX_FILES:
        raise ModelRefused(f"{folder.name} holds {len(paths)} files; a version has 1 to {MAX_FILES}")
    return sorted(paths)
