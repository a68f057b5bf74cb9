"""A tiny base, made once a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.runs import make_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The canonical folder of a tiny random BERT without a head."""
    return make_base(tmp_path_factory.mktemp("training-base"))
