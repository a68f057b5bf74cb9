"""A database on each engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ondol.sql.database import Database
from tests.job_fixtures import open_database


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty, migrated database, once on each engine."""
    opened = open_database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_database(sqlite_url: str) -> Iterator[Database]:
    """An empty, migrated database on SQLite."""
    opened = open_database(sqlite_url)
    yield opened
    opened.close()
