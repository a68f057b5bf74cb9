"""Flower's part in `ondol up`: it gets a port, says so, and holds up nothing."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ondol.control.flower.address import dashboard_password, password_file, url_file
from ondol.control.up_flower import plan_flower
from ondol.settings import FlowerSettings, UpSettings, load_settings

pytestmark = pytest.mark.unit


def test_turned_off_there_is_none(tmp_path: Path) -> None:
    assert plan_flower(load_settings(UpSettings, data_dir=tmp_path, flower=False), print) is None


def test_a_taken_port_is_said_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = str(server.getsockname()[1])
        monkeypatch.setenv("ONDOL_FLOWER_PORT", taken)
        flower = plan_flower(load_settings(UpSettings, data_dir=tmp_path), said.append)
    assert flower is not None
    assert flower.environment == {"ONDOL_FLOWER_PORT": "0"}
    assert len(said) == 1
    assert taken in said[0]
    assert "flower.url" in flower.line(), "not listening yet: it will say where it is"
    url_file(tmp_path / "run").parent.mkdir()
    url_file(tmp_path / "run").write_text("http://127.0.0.1:1234\n")
    assert flower.line() == f"Flower: http://127.0.0.1:1234  (user ondol, password in {tmp_path}/run/flower.password)"


def test_a_password_that_nobody_chose_is_made_once(tmp_path: Path) -> None:
    settings = load_settings(FlowerSettings, data_dir=tmp_path)
    made = dashboard_password(settings)
    assert len(made) >= 24
    assert dashboard_password(settings) == made
    assert password_file(settings.run_dir).stat().st_mode & 0o777 == 0o600
    assert dashboard_password(load_settings(FlowerSettings, data_dir=tmp_path, flower_password="chosen by me")) == (
        "chosen by me"
    )


@pytest.mark.parametrize("password", ["short", "온돌온돌온돌온돌", "tab\tin the middle"])
def test_a_password_that_cannot_be_typed_is_refused(
    password: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONDOL_FLOWER_PASSWORD", password)
    with pytest.raises(SystemExit):
        load_settings(FlowerSettings)
    line = capsys.readouterr().err
    assert "ONDOL_FLOWER_PASSWORD" in line
    assert password not in line
