from __future__ import annotations

from pathlib import Path

import pytest

from ondol.contract.errors import BrokerUnavailable
from ondol.settings import ApiSettings, CommonSettings, ReconcilerSettings, UpSettings, WorkerSettings, load_settings
from ondol.settings_table import describe_settings

pytestmark = pytest.mark.unit


def refused_line(capsys: pytest.CaptureFixture[str], settings_class: type[CommonSettings]) -> str:
    with pytest.raises(SystemExit) as ended:
        load_settings(settings_class)
    assert ended.value.code == 2
    written = capsys.readouterr().err
    assert written.endswith("\n")
    assert written.count("\n") == 1
    return written


def test_a_bad_value_ends_the_start_with_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONDOL_PORT", "70000")
    monkeypatch.setenv("ONDOL_LOG_LEVEL", "loud")
    line = refused_line(capsys, ApiSettings)
    assert "ONDOL_PORT" in line
    assert "65535" in line
    assert "ONDOL_LOG_LEVEL" in line


def test_a_refused_value_is_not_repeated_for_it_may_be_a_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONDOL_CORES", "hunter2")
    assert "hunter2" not in refused_line(capsys, WorkerSettings)


def test_open_access_is_refused_beyond_loopback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONDOL_AUTH", "off")
    for host in ("127.0.0.1", "localhost", "::1"):
        monkeypatch.setenv("ONDOL_HOST", host)
        assert load_settings(ApiSettings).auth == "off"
    monkeypatch.setenv("ONDOL_HOST", "0.0.0.0")
    assert "loopback" in refused_line(capsys, ApiSettings)


def test_windows_larger_than_the_thread_pool_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONDOL_WINDOW_MESSAGES", "32")
    assert "handler_threads" in refused_line(capsys, WorkerSettings)


def test_lists_are_given_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONDOL_CORES", "0, 2")
    monkeypatch.setenv("ONDOL_MODELS", "a,b@production,")
    settings = load_settings(WorkerSettings)
    assert settings.cores == (0, 2)
    assert settings.models == ("a", "b@production")


def test_the_command_line_wins_over_the_environment_and_the_environment_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("ONDOL_PORT=1111\nONDOL_HOST=::1\nOTHER_PROGRAM=1\n")
    assert load_settings(ApiSettings).port == 1111
    monkeypatch.setenv("ONDOL_PORT", "2222")
    assert load_settings(ApiSettings).port == 2222
    assert load_settings(ApiSettings, port=3333, host=None).port == 3333
    assert load_settings(ApiSettings).host == "::1"


def test_everything_lies_in_the_data_folder_by_default(tmp_path: Path) -> None:
    settings = load_settings(CommonSettings)
    assert settings.resolved_database_url() == f"sqlite:///{tmp_path}/ondol-data/ondol.db"
    assert settings.resolved_store_url() == f"file://{tmp_path}/ondol-data/store"
    with pytest.raises(BrokerUnavailable, match="ondol up"):
        settings.resolved_redis_url()
    settings.run_dir.mkdir(parents=True)
    (settings.run_dir / "redis.url").write_text("redis://:x@127.0.0.1:1/0\n")
    assert settings.resolved_redis_url() == "redis://:x@127.0.0.1:1/0"


@pytest.mark.parametrize("settings_class", [ApiSettings, WorkerSettings, ReconcilerSettings, UpSettings])
def test_defaults_are_within_their_own_bounds(settings_class: type[CommonSettings]) -> None:
    assert load_settings(settings_class) == settings_class()


def test_every_setting_is_described_and_every_number_bounded() -> None:
    table = describe_settings()
    assert [row.name for row in table] == sorted({row.name for row in table})
    for row in table:
        assert row.description.endswith("."), row.name
        assert row.processes, row.name
        if row.default.replace(".", "", 1).isdigit():
            assert row.allowed, row.name
    lease = next(row for row in table if row.name == "ONDOL_LEASE_S")
    assert (lease.unit, lease.default, lease.allowed) == ("s", "6", "2 or more, at most 600")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://ondol:hunter2@db/ondol"),
        ("DATABASE_URL", "ondol.db"),
        ("DATABASE_URL", "postgresql+psycopg://ondol:hunter2/x@db/ondol"),
        ("REDIS_URL", "hunter2:6379"),
        ("REDIS_URL", "http://redis:6379"),
    ],
)
def test_a_url_that_no_part_could_open_ends_the_start_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(f"ONDOL_{name}", value)
    line = refused_line(capsys, CommonSettings)
    assert f"ONDOL_{name}:" in line
    assert "hunter2" not in line
