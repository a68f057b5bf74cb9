"""Databases and backups hold people's texts and digests of keys: nobody but their owner reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ondol.cli.database import app as database_app
from ondol.cli.keys import app as keys_app
from ondol.control.backup import back_up
from tests.job_fixtures import open_database

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def open_to_others(*paths: Path) -> list[Path]:
    assert all(path.exists() for path in paths)
    return [path for path in paths if path.stat().st_mode & 0o077]


@pytest.mark.usefixtures("programs")
def test_a_dump_of_postgresql_is_private(postgresql_url: str, tmp_path: Path) -> None:
    open_database(postgresql_url).close()
    back_up(postgresql_url, tmp_path / "backup.dump")
    assert open_to_others(tmp_path / "backup.dump") == []


@pytest.mark.parametrize(("app", "command"), [(keys_app, "create"), (database_app, "upgrade")])
def test_what_a_command_makes_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: typer.Typer, command: str
) -> None:
    folder = tmp_path / "new" / "data"
    monkeypatch.setenv("ONDOL_DATA_DIR", str(folder))
    done = CliRunner().invoke(app, [command])
    assert done.exit_code == 0, done.output
    assert open_to_others(folder, *folder.rglob("ondol.db*")) == []


@pytest.mark.parametrize("command", ["restore", "copy"])
def test_what_a_restore_or_a_move_makes_is_private(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    open_database(sqlite_url).close()
    back_up(sqlite_url, tmp_path / "backup.db")
    target = tmp_path / "new" / "data" / "ondol.db"
    names = {"restore": f"sqlite:///{target}", "copy": sqlite_url}
    argument = {"restore": str(tmp_path / "backup.db"), "copy": f"sqlite:///{target}"}
    monkeypatch.setenv("ONDOL_DATABASE_URL", names[command])
    done = CliRunner().invoke(database_app, [command, argument[command]])
    assert done.exit_code == 0, done.output
    assert open_to_others(target.parent, *target.parent.glob("ondol.db*")) == []
