"""An object store behind a driver that cannot reach it, and says so with errors that are no OSError."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem


class DriverError(Exception):
    """What the driver raises when it cannot connect."""


class AwayFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """Every operation fails in the driver."""

    protocol = "away"

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise DriverError("Could not connect to the endpoint URL")

    _open = cat_file = rm = rm_file = makedirs = ls = info = exists = _fail


def store_behind_a_driver(monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of the store; the driver's module stands for one that is not installed here."""
    driver = ModuleType("botocore.exceptions")
    driver.BotoCoreError = DriverError  # type: ignore[attr-defined]  # a module made here has no declared names
    monkeypatch.setitem(sys.modules, "botocore.exceptions", driver)
    fsspec.register_implementation("away", AwayFileSystem, clobber=True)
    return "away://bucket"
