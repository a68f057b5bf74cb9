"""What administrates a database waits for one that says nothing no longer than a server does, and quotes no texts."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from ondol.contract.errors import DatabaseUnavailable
from ondol.control.administration import current_revision, upgrade_database
from ondol.control.moving import reopen_database
from ondol.sql import migrate
from ondol.sql.database import plain_engine
from ondol.sql.job_rows import job_row
from ondol.sql.tables import jobs
from tests.job_fixtures import new_job, open_database, project_of

pytestmark = pytest.mark.integration

LIMIT_S = 8.0
"""Connecting is given up after 5 s."""


@pytest.fixture
def silent_url() -> Iterator[str]:
    """Of a server that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"postgresql+psycopg://ondol@127.0.0.1:{listening.getsockname()[1]}/ondol"


@pytest.mark.parametrize("ask", [current_revision, upgrade_database, reopen_database])
@pytest.mark.timeout(30)
def test_a_server_that_says_nothing_is_given_up(silent_url: str, ask: Callable[[str], Any]) -> None:
    began_at = time.monotonic()
    with pytest.raises(DatabaseUnavailable, match="does not answer"):
        ask(silent_url)
    assert time.monotonic() - began_at < LIMIT_S


@pytest.mark.timeout(30)
def test_whoever_waits_for_another_upgrade_says_so_in_the_end(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "_TURN_LIMIT_S", 0.5)
    with sa.create_engine(postgresql_url, poolclass=sa.NullPool).connect() as other:
        pid = other.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        other.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": migrate._LOCK_KEY})
        with pytest.raises(DatabaseUnavailable, match=f"process {pid} of the server"):
            migrate.upgrade(postgresql_url)
    migrate.upgrade(postgresql_url)


def test_an_error_quotes_no_row(database_url: str) -> None:
    database = open_database(database_url)
    row = job_row(new_job(project_of(database)), 1.0) | {"kind": None, "job_metadata": {"who": "Jane Doe"}}
    database.close()
    engine = plain_engine(database_url)
    with pytest.raises(DBAPIError) as caught, engine.begin() as conn:
        conn.execute(sa.insert(jobs), [row])
    engine.dispose()
    assert "kind" in str(caught.value)
    assert "Jane Doe" not in f"{caught.value} {caught.value.orig}"


def test_an_error_of_a_write_quotes_no_row(database_url: str) -> None:
    database = open_database(database_url)
    row = job_row(new_job(project_of(database)), 1.0) | {"kind": None, "job_metadata": {"who": "Jane Doe"}}
    with pytest.raises(DBAPIError) as caught:
        database.write(lambda uow: uow.jobs.insert([row], []))
    database.close()
    assert "kind" in str(caught.value)
    assert "Jane Doe" not in f"{caught.value} {caught.value.orig}"
