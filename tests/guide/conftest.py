"""One running Ondol for all tests of the guide."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ondol import Ondol
from tests.stack import new_stack


@pytest.fixture(scope="session")
def ondol_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an Ondol that holds the default model."""
    with new_stack(tmp_path_factory.mktemp("guide"), ONDOL_TRAIN="true") as stack:
        yield stack.url


@pytest.fixture
def client(ondol_url: str) -> Iterator[Ondol]:
    """A client of it."""
    with Ondol(ondol_url) as client:
        yield client
