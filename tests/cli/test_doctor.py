"""`ondol doctor` sees what is wrong with settings, Redis, SQL, store and ports, and says what to do."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from ondol.cli import server_checks
from ondol.cli.checks import OF_COMPOSE, unfit_packages, unknown_settings
from ondol.cli.findings import Verdict, without_secret, without_secrets_of
from ondol.cli.main import run
from ondol.cli.server_checks import judge_database, judge_redis
from ondol.control.administration import DatabaseFacts
from ondol.settings_table import describe_settings
from tests.deploy.compose_file import COMPOSE_FILE, named_variables

pytestmark = pytest.mark.unit

GOOD_REDIS = {"redis_version": "7.2.4", "maxmemory_policy": "noeviction", "aof_enabled": 1, "used_memory": 10**6}
GOOD_SQL = {"server": "PostgreSQL 16.2", "revision": "0004", "newest_revision": "0004", "journal_mode": None}


@pytest.fixture
def nobody_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder, and a server's address where none is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONDOL_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("ONDOL_PORT", "0")
    monkeypatch.setenv("ONDOL_FLOWER_PORT", "0")
    return tmp_path


def doctor(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, str]]]:
    code = run(["doctor", "--json"])
    return code, {one["subject"]: one for one in json.loads(capsys.readouterr().out)["data"]}


def test_an_empty_folder_is_fit_for_up(nobody_there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = doctor(capsys)
    assert code == 0
    assert {"versions", "settings", "devices", "disk", "Redis", "SQL", "store", "server", "ports"} <= found.keys()
    assert "ondol up" in found["server"]["remedy"]
    assert all(one["remedy"] for one in found.values() if one["verdict"] != "ok")
    assert list(nobody_there.iterdir()) == []


def test_what_is_wrong_is_named_with_its_remedy(
    nobody_there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (nobody_there / ".env").write_text("ONDOL_DEVICE_MEMORY=300\n# ONDOL_X=1\n")
    (nobody_there / "store").write_text("a file in the place of the store")
    monkeypatch.setenv("ONDOL_STORE_URL", f"file://{nobody_there}/store")
    monkeypatch.setenv("ONDOL_REDIS_URL", "redis://:verysecret@127.0.0.1:1/0")
    monkeypatch.setenv("ONDOL_DATABASE_URL", "postgresql+psycopg://ondol:verysecret@127.0.0.1:1/ondol")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("ONDOL_PORT", str(taken.getsockname()[1]))
        code, found = doctor(capsys)
    assert code == 1
    bad = {subject for subject, one in found.items() if one["verdict"] == Verdict.BAD}
    assert bad == {"Redis", "SQL", "store"}
    assert "ONDOL_REDIS_URL" in found["Redis"]["remedy"]
    assert "ONDOL_DATABASE_URL" in found["SQL"]["remedy"]
    assert "ONDOL_DEVICE_MEMORY (meant: ONDOL_DEVICE_MEMORY_MB?)" in found["settings"]["found"]
    assert "ONDOL_PORT" in found["ports"]["remedy"]
    assert "verysecret" not in json.dumps(found)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("ONDOL_DATABASE_URL", "postgresql+psycopg://ondol@127.0.0.1:1/ondol?password=geheim"),
        ("ONDOL_DATABASE_URL", "postgresql+psycopg://ondol:gehe%69m@127.0.0.1:1/ondol?sslmode=nonsense"),
        ("ONDOL_REDIS_URL", "redis://127.0.0.1:1/0?password=geheim"),
        ("ONDOL_REDIS_URL", "redis://127.0.0.1:1/x?db=y&password=geheim"),
        ("ONDOL_REDIS_URL", "rediss://:geheim@127.0.0.1:1?ssl_ca_data=x&Password=geheim"),
        ("ONDOL_STORE_URL", "s3://key:geheim@bucket?secret_key=geheim"),
        ("ONDOL_STORE_URL", "ftp://user:geheim@127.0.0.1:1/store"),
        ("ONDOL_URL", "http://somebody:geheim@127.0.0.1:1"),
    ],
)
def test_no_secret_of_an_address_is_printed(
    name: str, url: str, nobody_there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, url)
    run(["doctor", "--json"])
    seen = capsys.readouterr()
    assert "geheim" not in (seen.out + seen.err).lower()
    assert "gehe%69m" not in seen.out


def test_names_that_are_read_are_no_mistakes() -> None:
    assert unknown_settings(["ONDOL_URL", "ONDOL_API_KEY", "ONDOL_DATA_DIR", "ONDOL_LEASE_S"]) == {}
    assert unknown_settings(["ONDOL_REDISURL", "ONDOL_ZZZ"]) == {"ONDOL_REDISURL": "ONDOL_REDIS_URL", "ONDOL_ZZZ": None}


def test_what_compose_reads_is_no_mistake_in_the_file_that_it_shares_with_us() -> None:
    named = {name for name in named_variables(COMPOSE_FILE.read_text()) if name.startswith("ONDOL_")}
    assert named - {row.name for row in describe_settings()} == OF_COMPOSE
    assert unknown_settings(named) == {}


def test_packages_that_do_not_fit_are_named() -> None:
    wanted = ["pytest>=1", "pytest<1", "no-such-package>=3", "pytest<1; extra == 'dev'"]
    assert [unfit.partition(" (")[2] for unfit in unfit_packages(wanted)] == ["wanted <1)"]


@pytest.mark.parametrize(
    ("more", "verdict", "remedy"),
    [
        ({}, Verdict.OK, ""),
        ({"redis_version": "6.0.1"}, Verdict.BAD, "6.2"),
        ({"maxmemory_policy": "allkeys-lru"}, Verdict.NOTE, "noeviction"),
        ({"aof_enabled": 0}, Verdict.NOTE, "appendonly"),
        ({"maxmemory": 1_050_000}, Verdict.NOTE, "maxmemory"),
    ],
)
def test_redis_is_judged_by_what_ondol_needs(more: dict[str, Any], verdict: Verdict, remedy: str) -> None:
    finding = judge_redis("redis://here", {**GOOD_REDIS, **more})
    assert finding.verdict is verdict
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    ("more", "verdict", "remedy"),
    [
        ({}, Verdict.OK, ""),
        ({"revision": None}, Verdict.NOTE, "ondol db upgrade"),
        ({"revision": "0002"}, Verdict.BAD, "ondol db upgrade"),
        ({"journal_mode": "delete"}, Verdict.BAD, "WAL"),
        ({"major_version": 12}, Verdict.BAD, "PostgreSQL 13"),
        ({"clock_ahead_s": -9.0}, Verdict.NOTE, "clocks"),
    ],
)
def test_a_database_is_judged_by_what_ondol_needs(more: dict[str, Any], verdict: Verdict, remedy: str) -> None:
    finding = judge_database("db", DatabaseFacts(**{**GOOD_SQL, "major_version": 16, "clock_ahead_s": 0.1, **more}))
    assert finding.verdict is verdict
    assert remedy in finding.remedy


def test_a_network_filesystem_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"rootfs / ext4 rw 0 0\nserver:/data {tmp_path} nfs4 rw 0 0\n")
    monkeypatch.setattr(server_checks, "_MOUNTS", mounts)
    assert server_checks.remote_filesystem(tmp_path / "data" / "ondol.db") == "nfs4"
    assert server_checks.remote_filesystem(Path("/ondol.db")) is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@redis:6379/0", "redis://:…@redis:6379/0"),
        ("redis://:redis@h", "redis://:…@h"),
        ("redis://h?password=geheim", "redis://h?password=…"),
        ("redis://h:6379/0?db=1&PASSWORD=geheim&timeout=3", "redis://h:6379/0?db=1&PASSWORD=…&timeout=3"),
        ("postgresql://u:a/b?c#d@h/db?sslmode=require", "postgresql://u:…@h/db?sslmode=require"),
        ("postgresql://u:a@b@h/db", "postgresql://u:…@h/db"),
        ("postgresql://u:p@h/db?options=a@b&sslpassword=x", "postgresql://u:…@h/db?options=a@b&sslpassword=…"),
        ("s3://bucket/a@b?aws_secret_access_key=k&session_token=t", None),
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("sqlite:////tmp/a@b:c.db", "sqlite:////tmp/a@b:c.db"),
        ("redis://:@h:6379/0", "redis://:@h:6379/0"),
    ],
)
def test_secrets_of_an_address_are_masked_and_nothing_else(url: str, shown: str | None) -> None:
    assert without_secret(url) == (shown or "s3://bucket/a@b?aws_secret_access_key=…&session_token=…")


def test_what_a_driver_says_is_masked_too() -> None:
    url = "redis://:p%40ss@h?password=geheim"
    said = f"AUTH p@ss failed at {url}: geheim is no p%40ss"
    assert without_secrets_of(url, said) == "AUTH … failed at redis://:…@h?password=…: … is no …"
