"""An import hook for the processes of a stack: those that must be light cannot import torch, and say if they tried."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LIGHT_PROGRAMS = ("api.main", "workers.main", "ondol.control.reconciler_main", "ondol.cli.main")
HEAVY_PACKAGES = ("torch", "transformers", "sentence_transformers")

_HOOK = """
import os
import sys
from pathlib import Path

_folder = Path(__file__).parent
_program = next((name for name in {programs!r} if name in sys.orig_argv), None)


class _Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            (_folder / ("tried-" + _program)).write_text(name)
            raise ImportError(name + " does not belong into " + _program)
        return None


if _program is not None:
    sys.meta_path.insert(0, _Refuse())
    (_folder / ("watched-" + _program)).write_text(str(os.getpid()))
"""


@dataclass(frozen=True, slots=True)
class Forbidden:
    """The folder that goes on `PYTHONPATH`; the hook writes there which programs it watches and which tried."""

    folder: Path

    def watched(self) -> set[str]:
        """Programs in which the hook is active."""
        return {path.name.removeprefix("watched-") for path in self.folder.glob("watched-*")}

    def tried(self) -> dict[str, str]:
        """What was tried to be imported, by program."""
        return {path.name.removeprefix("tried-"): path.read_text() for path in self.folder.glob("tried-*")}


def install(folder: Path) -> Forbidden:
    """Write the hook into `folder` as `sitecustomize`, which Python imports before a program."""
    hook = _HOOK.format(programs=LIGHT_PROGRAMS, packages=HEAVY_PACKAGES)
    (folder / "sitecustomize.py").write_text(hook, encoding="utf-8")
    return Forbidden(folder)
