"""PostgreSQL's own programs, for tests that make and restore backups of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa


@pytest.fixture
def programs(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the server's own programs, which stands on PATH."""
    query = sa.text("SELECT setting FROM pg_config() WHERE name = 'BINDIR'")
    with sa.create_engine(postgresql_url, poolclass=sa.NullPool).connect() as conn:
        folder = Path(str(conn.execute(query).scalar_one()))
    if not (folder / "pg_dump").exists():
        pytest.skip("the tests' PostgreSQL runs elsewhere, and its pg_dump is not here")
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder
