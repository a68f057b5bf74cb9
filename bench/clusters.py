"""Real processes for measurements that stop and kill them: a cluster on either database, with a tiny model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.stacks import TINY, running_postgres_server
from tests.cluster import Cluster, running_cluster
from tests.publishing import import_here
from tests.servers import PostgresServer, RedisServer
from tests.tiny_models import make_tiny_model

DATABASES = ("sqlite", "postgresql")


@dataclass(frozen=True, slots=True)
class Stage:
    """A cluster, and the servers that it needs; `postgres` is None on SQLite."""

    cluster: Cluster
    redis: RedisServer
    postgres: PostgresServer | None

    @property
    def sqlite_file(self) -> Path:
        """The database's file, on SQLite."""
        return self.cluster.folder / "ondol.db"


@contextlib.contextmanager
def empty_stage(folder: Path, database: str) -> Iterator[Stage]:
    """Servers, the tiny model published, and nothing of ours started yet. ImportError without PostgreSQL's wheel."""
    with contextlib.ExitStack() as held:
        postgres = held.enter_context(running_postgres_server()) if database == "postgresql" else None
        url = postgres.create_database() if postgres else f"sqlite:///{folder / 'ondol.db'}"
        (folder / "redis").mkdir()
        redis = RedisServer(folder / "redis")
        redis.start()
        held.callback(redis.stop)
        cluster = held.enter_context(running_cluster(folder, database_url=url, redis_url=redis.url))
        import_here(make_tiny_model(folder / "source"), folder / "version")
        cluster.publish(folder / "version", TINY)
        yield Stage(cluster, redis, postgres)
