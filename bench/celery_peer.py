"""Plain Celery (`bench.plain_celery`) as a peer: its Redis, one worker with the better of two pools, one client."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.machine import Meter, cores
from bench.plain_celery import FOLDER, REDIS
from bench.rounds import Figures, Peer
from ondol.control.launch import launch_command
from tests.servers import RedisServer

POOLS = {"solo": ["--pool", "solo"], "prefork": ["--pool", "prefork", "--concurrency", str(len(cores()))]}
STOP_LIMIT_S = 30
_ARGUMENTS = ["worker", "--loglevel", "WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat"]


@dataclass(frozen=True, slots=True)
class PlainCelery:
    """A running worker and client."""

    pool: str
    worker_pid: int
    redis_pid: int
    client: Peer

    def round(self, num: int) -> Figures:
        """`done_s`, `accepted_s` and `cpu_s` of so many tasks whose results have all come back."""
        meter = Meter((self.worker_pid, self.redis_pid), counts_self=False)
        found = self.client.run(num=num)
        cpu_s = meter.stop().cpu_s + found["client_cpu_s"]
        return {"done_s": found["wall_s"], "accepted_s": found["accepted_s"], "cpu_s": cpu_s}


@contextlib.contextmanager
def plain_celery(folder: Path, model: Path, num_trial: int) -> Iterator[PlainCelery]:
    """The peer with the pool that was faster with `num_trial` tasks."""
    redis = RedisServer(folder)
    redis.start()
    try:
        environment = {REDIS: redis.url, FOLDER: str(model), "OMP_NUM_THREADS": "1"}
        with Peer(["bench.plain_celery", "client"], environment=environment) as client:
            took: dict[str, float] = {}
            for pool in POOLS:
                with _worker(pool, environment, folder) as pid:
                    trial = PlainCelery(pool, pid, redis.pid, client)
                    trial.round(20 * len(cores()))  # every process loads its model
                    took[pool] = trial.round(num_trial)["done_s"]
            best = min(took, key=lambda pool: took[pool])
            with _worker(best, environment, folder) as pid:
                peer = PlainCelery(best, pid, redis.pid, client)
                peer.round(20 * len(cores()))
                yield peer
    finally:
        redis.stop()


@contextlib.contextmanager
def _worker(pool: str, environment: dict[str, str], folder: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "bench.plain_celery", *_ARGUMENTS, *POOLS[pool]]
    with (folder / "celery.log").open("ab") as log:
        child = subprocess.Popen(
            launch_command(command, parent=str(os.getpid())),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        yield child.pid
    finally:
        child.terminate()
        try:
            child.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)
            child.wait()
