"""A whole Ondol for tests: `ondol up` on a temporary folder and free ports, as a person would start it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ondol.demo.stack import Stack

SMALL_STACK = {"ONDOL_DEVICES": "cpu:1x1", "ONDOL_DTYPE": "float32", "ONDOL_LOG_FORMAT": "json"}


def new_stack(folder: Path, **settings: str) -> Stack:
    """A stack on one core; use it in a `with` statement, or start and stop it. `settings` are `ONDOL_…` variables."""
    given: Mapping[str, str] = {**SMALL_STACK, **settings}
    return Stack(folder / "data", given)
