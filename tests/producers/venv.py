"""A virtual environment of a producer's own: Celery and what it needs, and nothing of Ondol."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

_NEEDED = ("celery", "redis")
_EXTRA = "redis"
"""What a producer installs: `celery[redis]`, which is `kombu[redis]`."""


def make_producer_venv(folder: Path) -> Path:
    """The interpreter of a new environment; its packages are links to those that are installed here."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = Path(sysconfig.get_path("purelib", scheme="venv", vars={"base": str(folder), "platbase": str(folder)}))
    for found in _with_dependencies(_NEEDED).values():
        for name in {Path(str(file)).parts[0] for file in found.files or ()}:
            source = Path(str(found.locate_file(name)))
            if name != ".." and source.exists() and not (site / name).exists() and name != "__pycache__":
                (site / name).symlink_to(source)
    return folder / "bin" / "python"


def _with_dependencies(names: tuple[str, ...]) -> dict[str, Distribution]:
    """The packages and all that they require, by normalised name."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = _normal(waiting.pop())
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # wanted by its parent only where it is installed
        for line in found[name].requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": _EXTRA}):
                waiting.append(requirement.name)
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
