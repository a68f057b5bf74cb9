"""What tests of the pages and of the compose file share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.deploy.compose_file import COMPOSE_FILE, ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What of a fresh checkout the commands use."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=shutil.ignore_patterns("secrets", "ondol.env"))
    shutil.copy(COMPOSE_FILE, folder)
    return folder
