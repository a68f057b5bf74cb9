"""A whole Ondol for tests: `ondol up` on a temporary folder and free ports, as a person would start it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ondol.demo.stack import Stack

SMALL_STACK = {
    "ONDOL_DEVICES": "cpu:1x1",
    "ONDOL_DTYPE": "float32",
    "ONDOL_LOG_FORMAT": "json",
    "ONDOL_TRAIN": "false",
    "ONDOL_FLOWER": "false",
    "ONDOL_PRODUCERS": "false",
}


def new_stack(folder: Path, **settings: str) -> Stack:
    """A stack on one core, without trainer, Flower and intake unless settings ask for them; for a `with` statement.

    `settings` are `ONDOL_…` variables.
    """
    given: Mapping[str, str] = {**SMALL_STACK, **settings}
    return Stack(folder / "data", given)
