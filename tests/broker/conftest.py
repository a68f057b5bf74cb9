"""An imported tiny model, made once a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_models import make_tiny_model
from workers.importing.run import run_import


@pytest.fixture(scope="session")
def tiny_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A canonical folder as an import leaves it (bert, 32 dimensions)."""
    folder = tmp_path_factory.mktemp("tiny")
    run_import(make_tiny_model(folder / "source"), folder / "version", convert_bin=False, timeout_s=120)
    return folder / "version"
