"""What a health check says of a process that does not turn; the compose test shows that it passes for one that does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ondol.control import healthcheck
from ondol.control.administration import upgrade_database
from ondol.control.heartbeat import STALE_S, Heartbeat
from ondol.control.host import free_port

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ["reconciler", "intake"])
def test_a_loop_that_has_not_turned_for_long_is_unhealthy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONDOL_DATA_DIR", str(tmp_path))
    assert healthcheck.main([name]) == 1
    assert "has not begun to turn" in capsys.readouterr().err
    Heartbeat(tmp_path / "run", name).beat()
    assert healthcheck.main([name]) == 0
    long_ago = time.time() - STALE_S - 5
    os.utime(tmp_path / "run" / f"{name}.beat", (long_ago, long_ago))
    assert healthcheck.main([name]) == 1
    assert "last turned" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["worker", "trainer"])
def test_a_worker_without_a_lease_is_unhealthy(
    name: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONDOL_DATABASE_URL", sqlite_url)
    monkeypatch.setenv("ONDOL_DEVICE", "cuda:1")
    upgrade_database(sqlite_url)
    assert healthcheck.main([name]) == 1
    said = capsys.readouterr().err
    assert "no lease runs for" in said
    assert "cuda1@" in said


def test_a_database_that_does_not_answer_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONDOL_DATABASE_URL", f"postgresql+psycopg://ondol@127.0.0.1:{free_port()}/ondol")
    monkeypatch.setenv("ONDOL_DATABASE_PASSWORD", "hunter2")
    assert healthcheck.main(["worker"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "hunter2" not in said


@pytest.mark.parametrize("name", ["api", "flower"])
def test_a_port_that_nobody_listens_on_is_unhealthy(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    monkeypatch.setenv("ONDOL_PORT", str(port))
    monkeypatch.setenv("ONDOL_FLOWER_PORT", str(port))
    assert healthcheck.main([name]) == 1
    assert f"http://127.0.0.1:{port}/" in capsys.readouterr().err


def test_an_unknown_process_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert healthcheck.main(["redis"]) == 2
    assert "api, flower, worker" in capsys.readouterr().err
