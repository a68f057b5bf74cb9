"""Jobs: one-text durable jobs through `/v1/jobs/batch` and `/v1/jobs`, on SQLite and PostgreSQL, beside plain Celery.

`python -m bench.jobs [--full]`. A tiny random model, so that the systems and not the model are measured. Ours counts as
done when the last job's result and events are recorded, by the times in SQL, and all of them are counted there. Celery:
one task a text, the same model in its worker, its own Redis, results there; solo and prefork pools are tried, the
faster one is measured. Clients run in processes of their own; all contestants take turns in one run.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy as sa

from bench.celery_peer import plain_celery
from bench.machine import Meter
from bench.plain_celery import PREFETCH
from bench.report import Line, Size, run_line
from bench.rounds import Figures, Peer
from bench.stacks import TINY, import_tiny, running_postgres, running_stack, stop_in_order
from ondol.client.sync_client import Ondol
from ondol.demo.stack import Stack
from ondol.sql.database import Database
from ondol.sql.tables import events, jobs, results
from ondol.sql.unit_of_work import UnitOfWork

BATCH = 1_000
SINGLE_CONCURRENCY = 32
EVENTS_A_JOB = 3
CELERY = "plain Celery"


@dataclass(frozen=True, slots=True)
class System:
    """One of our contestants: its stack, a look into its database, and the roots of all its processes."""

    name: str
    stack: Stack
    database: Database
    pids: tuple[int, ...]


@dataclass(slots=True)
class Taken:
    """Rounds of each contestant: jobs (or tasks) a second, and CPU milliseconds of all processes a job."""

    per_s: dict[str, list[float]] = field(default_factory=dict)
    cpu_ms: dict[str, list[float]] = field(default_factory=dict)
    accepted_per_s: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, num: int, found: Figures) -> None:
        """One round of `num`."""
        self.per_s.setdefault(name, []).append(num / found["done_s"])
        self.accepted_per_s.setdefault(name, []).append(num / found["accepted_s"])
        self.cpu_ms.setdefault(name, []).append(found["cpu_s"] / num * 1e3)


def measure(parsed: argparse.Namespace, size: Size) -> Line:
    """All of it."""
    num = parsed.num_jobs or size.pick(2_000, 10_000)
    num_single, num_tasks = max(1, num // 5), max(1, num // 5)
    settings = {"num_jobs": num, "num_single": num_single, "num_tasks": num_tasks, "rounds": size.rounds}
    line = Line("jobs", "one-text durable jobs with a tiny model", settings)
    taken = Taken()
    with contextlib.ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="ondol-bench-")))
        systems = _systems(line, held)
        for system in systems:
            with Ondol(system.stack.url) as client:
                source = import_tiny(client, system.stack.data_dir)
        client_peer = held.enter_context(Peer(["bench.job_client"]))
        celery = held.enter_context(plain_celery(folder, source, max(200, num_tasks // 4)))
        line.settings["celery"] = f"{celery.pool} pool, prefetch multiplier {PREFETCH}"
        for system in systems:
            run_jobs(system, client_peer, num=min(num, 500), batch=BATCH)
        for _ in range(size.rounds):
            for system in systems:
                for batch, count in ((BATCH, num), (1, num_single)):
                    way = "one a request" if batch == 1 else f"batches of {batch:,}"
                    taken.note(f"{system.name}, {way}", count, run_jobs(system, client_peer, num=count, batch=batch))
            taken.note(CELERY, num_tasks, celery.round(num_tasks))
    _figures(line, taken)
    return line


def _systems(line: Line, held: contextlib.ExitStack) -> list[System]:
    stack = held.enter_context(running_stack())
    database = Database(f"sqlite:///{stack.data_dir / 'ondol.db'}")
    systems = [System("SQLite", stack, held.enter_context(contextlib.closing(database)), (stack.pid,))]
    try:
        server = held.enter_context(running_postgres())
    except ImportError:
        line.leave_out("PostgreSQL: its wheel is not installed (the extra `dev`)")
        return systems
    stack = held.enter_context(running_stack({"ONDOL_DATABASE_URL": server.url}))
    database = held.enter_context(contextlib.closing(Database(server.url)))
    pids = (stack.pid,) if server.pid is None else (stack.pid, server.pid)
    return [*systems, System("PostgreSQL", stack, database, pids)]


def run_jobs(system: System, client: Peer, *, num: int, batch: int) -> Figures:
    """`done_s`, `accepted_s` and `cpu_s` of so many jobs; RuntimeError if not all are recorded as they should."""
    concurrency = SINGLE_CONCURRENCY if batch == 1 else 1
    meter = Meter(system.pids, counts_self=False)
    port = urlsplit(system.stack.url).port
    found = client.run(port=port, model=TINY, num=num, batch=batch, concurrency=concurrency)
    spent = meter.stop()
    last_end = system.database.read(lambda uow: _last_end(uow, found["began_at"], num))
    cpu_s = spent.cpu_s + found["client_cpu_s"]
    return {"done_s": last_end - found["began_at"], "accepted_s": found["accepted_s"], "cpu_s": cpu_s}


def _last_end(uow: UnitOfWork, began_at: float, num: int) -> float:
    """When the last job ended of those accepted since; each must have its result and its events."""
    mine = sa.and_(jobs.c.created_at >= began_at, jobs.c.state == "succeeded")
    count, last = uow.conn.execute(sa.select(sa.func.count(), sa.func.max(jobs.c.finished_at)).where(mine)).one()
    ids = sa.select(jobs.c.id).where(mine)
    num_results = uow.conn.execute(
        sa.select(sa.func.count()).select_from(results).where(results.c.job_id.in_(ids))
    ).scalar_one()
    num_events = uow.conn.execute(
        sa.select(sa.func.count()).select_from(events).where(events.c.job_id.in_(ids))
    ).scalar_one()
    if (count, num_results) != (num, num) or num_events < num * EVENTS_A_JOB:
        raise RuntimeError(f"of {num} jobs {count} succeeded, with {num_results} results and {num_events} events")
    return float(last)


def _figures(line: Line, taken: Taken) -> None:
    for name, per_s in taken.per_s.items():
        line.add(f"{name}: done", "/s", per_s)
        line.add(f"{name}: accepted", "/s", taken.accepted_per_s[name])
        line.add(f"{name}: CPU of all processes", "ms", taken.cpu_ms[name], "a job")
    for name in taken.per_s:
        if name != CELERY:
            line.add_ratio(f"done a second, {name} ÷ plain Celery", taken.per_s[name], taken.per_s[CELERY])


if __name__ == "__main__":
    stop_in_order()
    sys.exit(
        run_line(
            measure,
            name="jobs",
            about=__doc__,
            options={"--num-jobs": {"type": int, "help": "default: 2,000, with --full 10,000"}},
        )
    )
