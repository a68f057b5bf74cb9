"""Recovery: how long after a SIGKILL the jobs of a worker run elsewhere, and a device process serves again.

`python -m bench.recovery [--full] [--database postgresql]`. Default settings, real processes. A worker is killed while
it holds running jobs, another one lives; the time runs until all of its jobs run, or have ended, under another session.
A device process is killed while idle, and a call sent at that moment: the time runs until its answer, so it holds the
start of a new process and the loading of the model.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import sqlalchemy as sa

from bench.clusters import DATABASES, empty_stage
from bench.report import Line, Size, run_line
from bench.stacks import MODEL, TINY, running_stack, stop_in_order
from ondol.client.sync_client import Ondol
from ondol.sql.database import Database
from ondol.sql.tables import jobs, sessions
from ondol.sql.unit_of_work import UnitOfWork
from tests.cluster import Cluster
from tests.waiting import wait_until

KILLS = 20
QUICK_KILLS = 4
JOBS_A_KILL = 6
WORKERS = ("worker0", "worker1")
SLOW = ("--delay-us-per-token", "200000")
"""So that a job of ten words runs for seconds."""
TEXT = "one two three four five six seven eight nine ten"
HELD_LIMIT_S = 60.0
ELSEWHERE_LIMIT_S = 60.0
DEVICE_LIMIT_S = 120.0
ASKED_S = 10.0


@contextlib.contextmanager
def two_slow_workers(folder: Path, database: str) -> Iterator[Cluster]:
    """Api, reconciler and two workers, whose device program does nothing, slowly; default settings."""
    with empty_stage(folder, database) as stage:
        stage.cluster.start_api()
        stage.cluster.start_reconciler()
        for number in range(len(WORKERS)):
            stage.cluster.start_worker(number, faults=SLOW)
        yield stage.cluster


def kill_and_see(cluster: Cluster, victim: str) -> float:
    """Seconds from the SIGKILL of a worker that runs jobs until others have all of them; it is started again."""
    number = victim.removeprefix("worker")
    with Ondol(cluster.url) as client:
        made = [client.jobs.create("embedding", input=TEXT, model=TINY) for _ in range(JOBS_A_KILL)]
        held = wait_until(
            lambda: held_by(cluster.database, f"cpu{number}@"), within_s=HELD_LIMIT_S, what=f"jobs of {victim}"
        )
        killed_at = time.monotonic()
        cluster.kill(victim)
        wait_until(
            lambda: run_elsewhere(cluster.database, held), within_s=ELSEWHERE_LIMIT_S, what="its jobs to run elsewhere"
        )
        took_s = time.monotonic() - killed_at
        cluster.restart(victim)
        for job in made:
            if job.wait().status != "succeeded":
                raise RuntimeError(f"{job.id} is {job.status}: {job.error}")
    cluster.wait_for_workers(len(WORKERS))
    return took_s


def held_by(database: Database, prefix: str) -> dict[str, int]:
    """Attempts by job of those that run under an open session of the worker whose name begins so."""

    def look(uow: UnitOfWork) -> dict[str, int]:
        both = sa.join(jobs, sessions, jobs.c.session_id == sessions.c.id)
        query = (
            sa.select(jobs.c.id, jobs.c.attempt)
            .select_from(both)
            .where(jobs.c.state == "running", sessions.c.worker.startswith(prefix), sessions.c.ended_at.is_(None))
        )
        return {row.id: row.attempt for row in uow.conn.execute(query)}

    return database.read(look)


def run_elsewhere(database: Database, held: dict[str, int]) -> bool:
    """Whether each job has been claimed again since."""

    def look(uow: UnitOfWork) -> bool:
        query = sa.select(jobs.c.id, jobs.c.attempt, jobs.c.state).where(jobs.c.id.in_(held))
        # A job that ended under the old attempt, in the moment before the kill, needs nobody any more.
        return all(
            (row.attempt > held[row.id] and row.state == "running") or row.state == "succeeded"
            for row in uow.conn.execute(query)
        )

    return database.read(look)


def kill_device_and_see(client: Ondol, root: psutil.Process) -> float:
    """Seconds from the SIGKILL of the one device process until a call is answered."""
    [device] = [each for each in root.children(recursive=True) if "workers.device" in each.cmdline()]
    killed_at = time.monotonic()
    device.kill()
    client.embed("are you there?", model=MODEL)
    return time.monotonic() - killed_at


def measure(parsed: argparse.Namespace, size: Size) -> Line:
    """Both."""
    num = parsed.num_kills or size.pick(QUICK_KILLS, KILLS)
    databases = [parsed.database] if parsed.database else list(DATABASES)
    line = Line("recovery", "SIGKILL, default settings", {"num_kills": num, "asked_s": ASKED_S, "model": MODEL})
    for database in databases:
        with tempfile.TemporaryDirectory(prefix="ondol-bench-", ignore_cleanup_errors=True) as folder:
            try:
                with two_slow_workers(Path(folder), database) as cluster:
                    taken = [kill_and_see(cluster, WORKERS[i % len(WORKERS)]) for i in range(num)]
            except ImportError:
                line.leave_out(f"{database}: its wheel is not installed (the extra `dev`)")
                continue
        _add(line, f"{database}: worker killed until its jobs run elsewhere", taken)
    with (
        running_stack({"ONDOL_DTYPE": "float32", "ONDOL_ENGINE": "torch"}) as stack,
        Ondol(stack.url, timeout=DEVICE_LIMIT_S) as client,
    ):
        client.embed("warm", model=MODEL)
        root = psutil.Process(stack.pid)
        taken = [kill_device_and_see(client, root) for _ in range(num)]
    _add(line, "device process killed until a call is answered", taken, note="starts torch, loads and runs the model")
    return line


def _add(line: Line, name: str, taken: Sequence[float], *, note: str = "") -> None:
    line.add(name, "s", taken, note)
    line.add(f"{name}: worst", "s", [max(taken)], note)


if __name__ == "__main__":
    stop_in_order()
    options: dict[str, dict[str, object]] = {
        "--database": {"choices": list(DATABASES), "help": "default: both"},
        "--num-kills": {"type": int, "help": f"default: {QUICK_KILLS}, with --full {KILLS}"},
    }
    sys.exit(run_line(measure, name="recovery", about=__doc__, options=options))
