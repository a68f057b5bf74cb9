"""A running Ondol for the tests of one file: its parts die and come back, and the next test finds all of them there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.reliability.house import QUICK, House, running_house

MakeHouse = Callable[..., AbstractContextManager[House]]


@pytest.fixture(autouse=True)
def _no_child_is_left() -> None:
    """Tests of one file start parts of the house that they share anew: `running_house` looks when it is closed."""


@pytest.fixture
def make_house(tmp_path: Path, tiny_version: Path) -> MakeHouse:
    """Makes a house of this test's own on the database URL given, with `QUICK` settings and those given."""

    def make(database_url: str, **settings: str) -> AbstractContextManager[House]:
        return running_house(
            tmp_path / "house", version=tiny_version, database_url=database_url, settings=QUICK | settings
        )

    return make


@pytest.fixture(scope="module")
def house_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the house that the tests of a file share."""
    return tmp_path_factory.mktemp("reliability")


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """What the house of a file is started with beside `QUICK`; a file may say otherwise."""
    return {}


@pytest.fixture(scope="module")
def sqlite_house(house_folder: Path, tiny_version: Path, settings: dict[str, str]) -> Iterator[House]:
    """A house on SQLite in which nothing is started yet, shared by the tests of a file."""
    url = f"sqlite:///{house_folder / 'ondol.db'}"
    folder = house_folder / "house"
    with running_house(folder, version=tiny_version, database_url=url, settings=QUICK | settings) as house:
        yield house
