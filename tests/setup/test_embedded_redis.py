from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ondol.contract.errors import BrokerUnavailable
from ondol.control.embedded_redis import find_redis_binary, prepare_embedded_redis


@pytest.mark.unit
def test_the_password_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    server = prepare_embedded_redis(tmp_path / "redis", tmp_path / "run" / "redis.url")
    server.write_config(tmp_path / "run" / "redis.conf")
    for name in ("redis.url", "redis.conf"):
        path = tmp_path / "run" / name
        assert server.password in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []


@pytest.mark.unit
def test_the_address_stays_over_a_restart(tmp_path: Path) -> None:
    first = prepare_embedded_redis(tmp_path / "redis", tmp_path / "redis.url")
    assert prepare_embedded_redis(tmp_path / "redis", tmp_path / "redis.url") == first


@pytest.mark.unit
def test_without_a_server_binary_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BrokerUnavailable, match="ONDOL_REDIS_URL"):
        find_redis_binary()
