"""One running Ondol for all tests of the guide."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ondol import Ondol
from ondol.demo.stack import Stack
from tests.stack import new_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An Ondol that holds the default model, trains, and takes what Celery producers send."""
    settings = {"ONDOL_TRAIN": "true", "ONDOL_PRODUCERS": "true"}
    with new_stack(tmp_path_factory.mktemp("guide"), **settings) as started:
        yield started


@pytest.fixture(scope="session")
def ondol_url(stack: Stack) -> str:
    """Its address."""
    return stack.url


@pytest.fixture
def client(ondol_url: str) -> Iterator[Ondol]:
    """A client of it."""
    with Ondol(ondol_url) as client:
        yield client
