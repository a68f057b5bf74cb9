from __future__ import annotations

from pathlib import Path

import pytest
import redis
import sqlalchemy as sa
from pydantic import SecretStr

from ondol.settings import CommonSettings, FlowerSettings, load_settings
from ondol.url_password import with_password

HARD = "p@s:s/w#r d%?&é"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "secrets"
    made.mkdir()
    monkeypatch.setenv("ONDOL_SECRETS_DIR", str(made))
    return made


@pytest.mark.unit
@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("redis://redis:6379/0", "redis://:{}@redis:6379/0"),
        ("rediss://worker@[::1]:6379/0?protocol=2", "rediss://worker:{}@[::1]:6379/0?protocol=2"),
        ("redis://:mine@redis:6379/0", "redis://:mine@redis:6379/0"),
        ("postgresql+psycopg://ondol@db/ondol", "postgresql+psycopg://ondol:{}@db/ondol"),
        ("postgresql+psycopg://ondol@/ondol?host=/run/db", "postgresql+psycopg://ondol:{}@/ondol?host=/run/db"),
        ("postgresql+psycopg://ondol:mine@db/ondol", "postgresql+psycopg://ondol:mine@db/ondol"),
        ("sqlite:////data/ondol.db", "sqlite:////data/ondol.db"),
    ],
)
def test_a_password_goes_into_urls_that_hold_none(url: str, whole: str) -> None:
    assert with_password(url, SecretStr(HARD)) == whole.format("p%40s%3As%2Fw%23r%20d%25%3F%26%C3%A9")
    assert with_password(url, None) == url


@pytest.mark.unit
def test_libraries_read_the_password_back() -> None:
    database = with_password("postgresql+psycopg://ondol@db:5432/ondol", SecretStr(HARD))
    assert sa.make_url(database).password == HARD
    client = redis.Redis.from_url(with_password("redis://redis:6379/0", SecretStr(HARD)))
    assert client.connection_pool.connection_kwargs["password"] == HARD
    client.close()


@pytest.mark.unit
def test_settings_come_from_files_and_the_environment_wins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONDOL_REDIS_URL", "redis://redis/0")
    monkeypatch.setenv("ONDOL_DATABASE_URL", "postgresql+psycopg://ondol@db/ondol")
    (folder / "ondol_redis_password").write_text("from-a-file\n")
    (folder / "ondol_database_password").write_text("from-a-file\n")
    (folder / "ondol_flower_password").write_text("to-look-at\n")
    (folder / "of_another_program").write_text("1")
    monkeypatch.setenv("ONDOL_DATABASE_PASSWORD", "from-the-environment")
    settings = load_settings(FlowerSettings)
    assert settings.resolved_redis_url() == "redis://:from-a-file@redis/0"
    assert settings.resolved_database_url() == "postgresql+psycopg://ondol:from-the-environment@db/ondol"
    assert settings.flower_password is not None
    assert settings.flower_password.get_secret_value() == "to-look-at"
    assert "from-a-file" not in repr(settings)


@pytest.mark.unit
def test_a_folder_of_secrets_that_is_named_must_be_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONDOL_SECRETS_DIR", str(folder / "missing"))
    with pytest.raises(SystemExit):
        load_settings(CommonSettings)
    assert capsys.readouterr().err == "bad setting: ONDOL_SECRETS_DIR: no such folder, or not to be read\n"
    monkeypatch.delenv("ONDOL_SECRETS_DIR")
    monkeypatch.setattr("ondol.settings.DEFAULT_SECRETS_DIR", folder / "missing")
    assert load_settings(CommonSettings).redis_password is None


@pytest.mark.unit
def test_a_secret_in_a_file_that_is_refused_is_not_repeated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "ondol_lease_s").write_text("hunter2")
    with pytest.raises(SystemExit):
        load_settings(CommonSettings)
    assert "hunter2" not in capsys.readouterr().err
