"""A cluster whose parts are frozen, killed and cut off, and what SQL, Redis and the logs then say of a job."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import sqlalchemy as sa

from ondol.sql.records import VersionRecord
from ondol.sql.tables import attempts, events, jobs, messages, results
from tests.cluster import Cluster
from tests.servers import RedisServer
from tests.waiting import wait_until

LIMIT_S = 60
ANSWER_LIMIT_S = 30
TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
QUICK = {
    "ONDOL_LEASE_S": "4",
    "ONDOL_RENEW_S": "1",
    "ONDOL_RUNG_UNCLAIMED_S": "1",
    "ONDOL_LEADER_LEASE_S": "2",
    "ONDOL_TICK_S": "0.3",
    "ONDOL_LOG_FORMAT": "json",
}
"""Leases and ticks that are short enough to be waited for."""
SLOW = ("--delay-us-per-token", "2000")
"""Faults of a device on which `long_job` takes some seconds, and a job of one text some hundredths."""


class House(Cluster):
    """A `Cluster` with a client of its api, and questions about what it recorded."""

    def __init__(self, folder: Path, *, database_url: str, redis: RedisServer, settings: Mapping[str, str]) -> None:
        super().__init__(folder, database_url=database_url, redis_url=redis.url, settings=dict(settings))
        self.redis = redis
        self.http = httpx.Client(base_url=self.url, timeout=ANSWER_LIMIT_S, trust_env=False)
        self.version: VersionRecord

    def close(self) -> None:
        """End everything; what was frozen is woken first, or it would not hear that it is to stop."""
        for name in self.processes:
            self.thaw(name)
        self.http.close()
        super().close()

    def start_program(self, name: str, module: str, *arguments: str, **settings: str) -> None:
        """Start a module of the tests or of the product under this name; `settings` are `ONDOL_…` variables."""
        self._start(name, ["-m", module, *arguments], settings)

    def freeze(self, name: str) -> None:
        """SIGSTOP a process; returns when it is stopped, and not inside a transaction that keeps others from SQLite."""
        process = psutil.Process(self.processes[name].pid)

        def stands_still() -> bool:
            process.send_signal(signal.SIGSTOP)
            wait_until(lambda: process.status() == psutil.STATUS_STOPPED, within_s=LIMIT_S, what=f"{name} to stop")
            if self._can_be_written():
                return True
            self.thaw(name)
            return False

        wait_until(stands_still, within_s=LIMIT_S, what=f"{name} to stand still outside of a transaction")

    def _can_be_written(self) -> bool:
        """Whether SQLite's lock is to be had within a second; PostgreSQL ends the transactions of the frozen itself."""
        if not self.database.is_sqlite:
            return True
        path = str(sa.make_url(self.database_url).database)
        with closing(sqlite3.connect(path, timeout=1.0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            connection.execute("ROLLBACK")
            return True

    def thaw(self, name: str) -> None:
        """SIGCONT a process, if it still runs."""
        if self.processes[name].poll() is None:
            self.processes[name].send_signal(signal.SIGCONT)

    def wait_for_end(self, name: str) -> int:
        """The exit code of a process that ends by itself."""
        return self.processes[name].wait(LIMIT_S)

    def bring_back(self, name: str = "worker0") -> None:
        """Start a killed worker again and wait until its new session is ready."""
        before = {session.id for session in self._sessions()}
        self.restart(name)
        prefix = name.replace("worker", "cpu").replace("trainer", "train-cpu")
        wait_until(
            lambda: any(
                s.worker.startswith(f"{prefix}@") and s.is_ready and s.id not in before for s in self._sessions()
            ),
            within_s=LIMIT_S,
            what=f"{name} to be back",
        )

    def session_of(self, prefix: str = "cpu0@") -> str | None:
        """The open, ready session of the worker whose name begins so."""
        return next((s.id for s in self._sessions() if s.worker.startswith(prefix) and s.is_ready), None)

    def submit(self, text: str | Sequence[str] = "the fire burns below", **fields: Any) -> str:
        """An accepted job's id."""
        body = {"kind": "embedding", "model": "tiny", "input": text, **fields}
        answer = self.http.post("/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def submit_many(self, num: int) -> list[str]:
        """Ids of so many accepted jobs of one text each."""
        one = {"kind": "embedding", "model": "tiny"}
        body = {"jobs": [{**one, "input": f"the warm floor number {i}"} for i in range(num)]}
        answer = self.http.post("/v1/jobs/batch", json=body)
        assert answer.status_code == 200, answer.text
        return [job["id"] for job in answer.json()["data"]]

    def long_job(self, num_texts: int = 60) -> str:
        """A job that runs for seconds on a `SLOW` device, once it does run."""
        job_id = self.submit([f"number {i} of the warm floors of this house" for i in range(num_texts)])
        wait_until(lambda: self.job(job_id)["status"] == "running", within_s=LIMIT_S, what="the long job to run")
        return job_id

    def job(self, job_id: str, wait_s: float = 0) -> dict[str, Any]:
        """The job as the api shows it."""
        shown: dict[str, Any] = self.http.get(f"/v1/jobs/{job_id}", params={"wait": wait_s}).raise_for_status().json()
        return shown

    def ended(self, job_id: str, status: str = "succeeded") -> dict[str, Any]:
        """The job once it has ended; AssertionError if it ended otherwise."""

        def look() -> dict[str, Any] | None:
            job = self.job(job_id, wait_s=2)
            return job if job["status"] in TERMINAL else None

        job = wait_until(look, within_s=LIMIT_S, what=f"{job_id} to end")
        assert job is not None and job["status"] == status, job
        return job

    def all_ended(self, ids: Sequence[str], status: str = "succeeded") -> None:
        """Wait until all of the jobs have ended so."""
        query = sa.select(sa.func.count()).where(jobs.c.id.in_(ids), jobs.c.state == status)
        wait_until(lambda: self.count(query) == len(ids), within_s=LIMIT_S, what=f"{len(ids)} jobs to be {status}")

    def attempts_of(self, job_id: str) -> list[tuple[int, str | None]]:
        """(number, outcome) of each attempt, in order."""
        query = sa.select(attempts.c.attempt, attempts.c.outcome).where(attempts.c.job_id == job_id)
        found = self.database.read(lambda uow: uow.conn.execute(query.order_by(attempts.c.attempt)).all())
        return [(row.attempt, row.outcome) for row in found]

    def outcomes(self, ids: Sequence[str]) -> Counter[tuple[int, str | None]]:
        """How many attempts of these jobs have this number and outcome."""
        query = sa.select(attempts.c.attempt, attempts.c.outcome).where(attempts.c.job_id.in_(ids))
        return Counter((r.attempt, r.outcome) for r in self.database.read(lambda uow: uow.conn.execute(query).all()))

    def reasons_of(self, job_id: str) -> list[str]:
        """Why the job moved, each time."""
        query = sa.select(events.c.data).where(events.c.job_id == job_id, events.c.type == "state")
        found = self.database.read(lambda uow: uow.conn.execute(query.order_by(events.c.seq)).all())
        return [str(row.data["reason"]) for row in found]

    def num_results(self, ids: Sequence[str]) -> int:
        """Stored results of these jobs."""
        return self.count(sa.select(sa.func.count()).where(results.c.job_id.in_(ids)))

    def num_messages(self, *, is_claimed: bool | None = None) -> int:
        """Messages that are out: all, or those that somebody has claimed or nobody."""
        query = sa.select(sa.func.count()).select_from(messages)
        if is_claimed is not None:
            query = query.where(messages.c.claimed_at.is_not(None) if is_claimed else messages.c.claimed_at.is_(None))
        return self.count(query)

    def count(self, query: sa.Select[int]) -> int:
        """The one number that a query answers."""
        return self.database.read(lambda uow: int(uow.conn.execute(query).scalar_one()))

    def repairs(self) -> Counter[str]:
        """Repairs so far, by kind."""
        return Counter(self.database.read(lambda uow: uow.leaders.repair_counts()))

    def queue_of(self, worker: str = "cpu0", priority: str = "normal") -> str:
        """The Redis key of a worker's queue; it must have or have had a session."""
        session = next(s for s in self._sessions() if s.worker.startswith(f"{worker}@"))
        return f"ondol.{session.worker}.{priority}"

    def queue_length(self, key: str) -> int:
        """Messages in a queue."""
        with self.redis.client() as client:
            return int(client.llen(key))

    def lines_of(self, name: str, event: str) -> list[dict[str, Any]]:
        """The structured lines of that event in a process's log."""
        parsed = [json.loads(line) for line in self.log_of(name).splitlines() if line.startswith("{")]
        return [line for line in parsed if line.get("event") == event]


@contextmanager
def running_house(
    folder: Path, *, version: Path, database_url: str, settings: Mapping[str, str] = QUICK
) -> Iterator[House]:
    """A house with a Redis of its own and the model `tiny`; nothing else is started yet."""
    before = _children()
    (folder / "redis").mkdir(parents=True)
    redis = RedisServer(folder / "redis")
    redis.start()
    try:
        with closing(House(folder, database_url=database_url, redis=redis, settings=settings)) as house:
            house.version = house.publish(version, "tiny")
            yield house
    finally:
        redis.stop()
    wait_until(lambda: _children() <= before, within_s=LIMIT_S, what="child processes of the house to end")


def _children() -> set[int]:
    """Process ids of all that this process has started and that still runs."""
    found = psutil.Process().children(recursive=True)
    return {process.pid for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE}
