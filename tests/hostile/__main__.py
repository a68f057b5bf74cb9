"""The long run: `python -m tests.hostile --examples 200`, on SQLite without keys and on PostgreSQL with them."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.hostile.conformance import check_conformance
from tests.hostile.stand import running_stand
from tests.publishing import import_here
from tests.servers import PostgresServer, RedisServer
from tests.tiny_models import make_tiny_model

LIMIT_S = 4 * 3_600.0


def main() -> int:
    """1 if schemathesis found anything."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--examples", type=int, default=100, help="cases an operation and phase, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), action="append")
    arguments, more = parser.parse_known_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    code = 0
    for engine in arguments.database or ("sqlite", "postgresql"):
        with tempfile.TemporaryDirectory() as name:
            code |= _run(engine, Path(name), arguments.examples, arguments.seed, more)
    return code


def _run(engine: str, folder: Path, examples: int, seed: int, more: list[str]) -> int:
    redis = RedisServer(folder / "redis")
    redis.start()
    postgres = PostgresServer.start() if engine == "postgresql" else None
    try:
        url = postgres.create_database() if postgres is not None else f"sqlite:///{folder / 'ondol.db'}"
        import_here(make_tiny_model(folder / "source"), folder / "version")
        auth = "keys" if postgres is not None else "off"
        with running_stand(folder, folder / "version", database_url=url, redis_url=redis.url, ONDOL_AUTH=auth) as stand:
            print(f"{engine}, keys {auth}, seed {seed}, {examples} examples", flush=True)
            found = check_conformance(
                stand,
                asks_for_keys=auth == "keys",
                examples=examples,
                seed=seed,
                folder=folder,
                limit_s=LIMIT_S,
                more=more,
            )
            print(found.output, flush=True)
            stand.cluster.publish(folder / "version", "afterwards")  # others may have been deleted
            stand.check_alive(stand.pids(), model="afterwards")
    finally:
        if postgres is not None:
            postgres.stop()
        redis.stop()
    return 0 if found.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
