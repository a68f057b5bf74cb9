from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ondol.control.up import run_up
from ondol.control.up_lock import locked_data_folder
from ondol.settings import UpSettings, load_settings

pytestmark = pytest.mark.integration


def refused(capsys: pytest.CaptureFixture[str], **overrides: object) -> str:
    assert run_up(load_settings(UpSettings, **overrides)) == 2
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    return written


def test_a_second_up_on_the_same_data_folder_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked_data_folder(tmp_path / "data" / "run"):
        line = refused(capsys, data_dir=tmp_path / "data", port=0)
    assert "already works on" in line
    assert str(tmp_path / "data") in line


def test_a_taken_port_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert str(port) in refused(capsys, data_dir=tmp_path / "data", port=port)


def test_a_device_that_is_not_here_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cuda:77" in refused(capsys, data_dir=tmp_path / "data", port=0, devices="cuda:77")


def test_a_bad_setting_of_a_worker_stops_up_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONDOL_DTYPE", "float13")
    with pytest.raises(SystemExit):
        run_up(load_settings(UpSettings, data_dir=tmp_path / "data"))
    assert "ONDOL_DTYPE" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
