"""Reading a folder that nobody has checked yet: every path stays inside it, every JSON file is bounded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ondol.contract.errors import ModelRefused

MAX_JSON_BYTES = 200 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")


class SourceFolder:
    """The folder to import; `label` begins the names of its files in messages. ModelRefused if it is no folder."""

    def __init__(self, root: Path, *, label: str = "", allowed: tuple[Path, ...] = ()) -> None:
        if not root.is_dir():
            raise ModelRefused(f"{root.name} is not a folder; name the folder that holds config.json and the weights")
        self._root = root
        self._label = label
        self._allowed = allowed or _allowed_roots(root.resolve())

    @property
    def folder_name(self) -> str:
        """The folder's own name, for messages and guesses."""
        return self._root.resolve().name

    def has(self, name: str) -> bool:
        """Whether there is a file of this plain name."""
        return (self._root / _plain(name)).exists()

    def names(self) -> list[str]:
        """Names of everything directly in the folder, sorted."""
        return sorted(path.name for path in self._root.iterdir())

    def file(self, name: str) -> Path:
        """The file `name`; ModelRefused if it is missing, no ordinary file, or a link that leads elsewhere."""
        path = self._root / _plain(name)
        if not path.is_file():
            raise ModelRefused(f"{self.shown(name)} is missing")
        self._check_inside(path, name)
        return path

    def read_text(self, name: str) -> str:
        """The file as UTF-8 text; ModelRefused if it is too large or something else."""
        path = self.file(name)
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelRefused(f"{self.shown(name)} has {path.stat().st_size} bytes; {MAX_JSON_BYTES} are allowed")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as exc:
            raise ModelRefused(f"{self.shown(name)} is not UTF-8 text") from exc

    def read_json(self, name: str) -> Any:
        """The parsed file; ModelRefused if it is not JSON."""
        try:
            return json.loads(self.read_text(name))
        except (ValueError, RecursionError) as exc:
            raise ModelRefused(f"{self.shown(name)} is not JSON: {exc}") from exc

    def read_object(self, name: str) -> dict[str, Any]:
        """The parsed file, which must be a JSON object."""
        content = self.read_json(name)
        if not isinstance(content, dict):
            raise ModelRefused(f"{self.shown(name)} is not a JSON object")
        return content

    def sub(self, name: str) -> SourceFolder:
        """A folder inside; the empty name is the folder itself. ModelRefused if it is missing or leads elsewhere."""
        if name == "":
            return self
        path = self._root / _plain(name)
        if not path.is_dir():
            raise ModelRefused(f"the folder {self.shown(name)} is missing")
        self._check_inside(path, name)
        return SourceFolder(path, label=f"{self._label}{name}/", allowed=self._allowed)

    def shown(self, name: str) -> str:
        """The file's name as messages give it."""
        return f"{self._label}{name}"

    def _check_inside(self, path: Path, name: str) -> None:
        resolved = path.resolve()
        if not any(resolved.is_relative_to(root) for root in self._allowed):
            raise ModelRefused(f"{self.shown(name)} is a link to a place outside the folder; copy the file itself")


def _plain(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise ModelRefused(f"{name[:120]!r} is not a plain file name; paths may not lead out of the model's folder")
    return name


def _allowed_roots(root: Path) -> tuple[Path, ...]:
    """The folder; for a snapshot of the hub's cache also the blobs that its links point to."""
    blobs = root.parent.parent / "blobs"
    if root.parent.name == "snapshots" and blobs.is_dir():
        return (root, blobs)
    return (root,)
