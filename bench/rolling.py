"""Rolling restart: every process is stopped by SIGTERM and started again, in turn, under a load of the client library.

`python -m bench.rolling [--full] [--database postgresql]`. Api, two workers with a tiny model, a trainer that trains,
reconciler and intake, default settings. Jobs, batches and calls go through one client with its default retries. The
next process is stopped when the last one is ready again. Seconds: from SIGTERM to its end, and until the next is ready.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.clusters import DATABASES, empty_stage
from bench.report import Line, Size, percentile, run_line
from bench.stacks import TINY, stop_in_order
from bench.steady_load import Fate, Noted, SteadyLoad, ThroughSdk, fate_of
from ondol.client.sync_client import Ondol
from ondol.client.sync_jobs import Job
from tests.cluster import Cluster
from tests.training_jobs.client import rows_of_weather
from tests.waiting import answers_well, wait_until

RATES = {"job": 2.0, "batch": 0.5, "call": 3.0}
PARTS = ("api", "worker0", "worker1", "trainer0", "reconciler", "intake")
START_LIMIT_S = 240.0
DRAIN_LIMIT_S = 240.0
TRAINING_LIMIT_S = 600.0
BETWEEN_S = 3.0
"""Between the last process being ready and the next one's stop."""
NUM_ROWS = 300
FIRST_STEPS = 5
EPOCHS = 40


@dataclass(frozen=True, slots=True)
class Restart:
    """Seconds from SIGTERM to the end of a process, and from there until the one that follows is ready."""

    stop_s: float
    start_s: float


@dataclass(frozen=True, slots=True)
class Rolled:
    """One round through all processes: stopping and starting of each, the requests, the jobs, and the fine-tune."""

    restarts: dict[str, Restart]
    noted: tuple[Noted, ...]
    fate: Fate
    training_status: str
    training_attempts: int
    num_losses: int


@contextlib.contextmanager
def running_parts(folder: Path, database: str) -> Iterator[Cluster]:
    """All parts, on a database of that kind."""
    with empty_stage(folder, database) as stage:
        cluster = stage.cluster
        cluster.start_api()
        cluster.start_reconciler()
        cluster.start_intake()
        cluster.start_worker(0)
        cluster.start_worker(1, cores="1")
        cluster.start_trainer()
        yield cluster


def restart(cluster: Cluster, name: str) -> Restart:
    """Stop a process and start it again; RuntimeError if it did not end well."""
    began = time.monotonic()
    if (code := cluster.terminate(name)) != 0:
        raise RuntimeError(f"{name} ended with {code}: {cluster.log_of(name)[-2000:]}")
    ended, behind = time.monotonic(), len(cluster.log_of(name))
    cluster.restart(name)
    is_ready = _readiness(cluster, name, behind)
    wait_until(is_ready, within_s=START_LIMIT_S, what=f"{name} to be ready again")
    return Restart(ended - began, time.monotonic() - ended)


def _readiness(cluster: Cluster, name: str, behind: int) -> Callable[[], bool]:
    if name == "api":
        return lambda: answers_well(cluster.port, "/readyz")
    if name.startswith("worker"):
        prefix = f"cpu{name.removeprefix('worker')}@"
        return lambda: any(worker.startswith(prefix) for worker in _ready_workers(cluster))
    if name.startswith("trainer"):
        return lambda: any(worker.startswith("train-") for worker in _ready_workers(cluster))
    said = {"reconciler": "reconciler.leads", "intake": "intake.up"}[name]
    return lambda: said in cluster.log_of(name)[behind:]


def _ready_workers(cluster: Cluster) -> list[str]:
    open_ones = cluster.database.read(lambda uow: uow.sessions.open_sessions())
    return [one.worker for one in open_ones if one.is_ready]


def begin_training(client: Ondol, folder: Path) -> Job:
    """A fine-tune that trains while everything is restarted."""
    file = folder / "weather.csv"
    file.write_text(rows_of_weather(NUM_ROWS), encoding="utf-8")
    job = client.fine_tune(
        file, model=TINY, name="weather", epochs=EPOCHS, batch_size=4, learning_rate=0.001, checkpoint_every_s=5
    )

    def trains() -> bool:
        progress = job.refresh().progress
        return job.status == "running" and progress is not None and progress.done >= FIRST_STEPS

    wait_until(trains, within_s=START_LIMIT_S, what="the first steps")
    return job


def roll(cluster: Cluster) -> Rolled:
    """Restart every part in turn under load, and wait for the end of everything that was begun."""
    with Ondol(cluster.url) as client:
        training = begin_training(client, cluster.folder)
        with SteadyLoad(ThroughSdk(client, TINY).senders(), RATES) as load:
            restarts = {}
            for name in PARTS:
                time.sleep(BETWEEN_S)  # what is measured is a restart under a load that has settled
                restarts[name] = restart(cluster, name)
            time.sleep(BETWEEN_S)  # the load goes on behind the last restart, too
        ids = load.accepted()
        database = cluster.database
        wait_until(
            lambda: fate_of(database, ids).num_unfinished == 0, within_s=DRAIN_LIMIT_S, what="all accepted jobs to end"
        )
        training.wait(timeout_s=TRAINING_LIMIT_S)
        fate, of_training = fate_of(database, ids), fate_of(database, [training.id])
        return Rolled(
            restarts=restarts,
            noted=tuple(load.noted),
            fate=fate,
            training_status=training.status,
            training_attempts=training.attempt,
            num_losses=fate.num_lost_attempts + of_training.num_lost_attempts,
        )


def measure(parsed: argparse.Namespace, size: Size) -> Line:
    """All of it, on one database or on both."""
    databases = [parsed.database] if parsed.database else list(DATABASES)
    line = Line("rolling", "every process restarted in turn", {"rates": RATES, "parts": PARTS})
    for database in databases:
        with tempfile.TemporaryDirectory(prefix="ondol-bench-", ignore_cleanup_errors=True) as folder:
            try:
                with running_parts(Path(folder), database) as cluster:
                    rolled = [roll(cluster) for _ in range(size.rounds if size.is_full else 1)]
            except ImportError:
                line.leave_out(f"{database}: its wheel is not installed (the extra `dev`)")
                continue
        _figures(line, database, rolled)
    return line


def _figures(line: Line, database: str, rolled: list[Rolled]) -> None:
    def add(what: str, unit: str, of: Callable[[Rolled], float], note: str = "") -> None:
        line.add(f"{database}: {what}", unit, [of(each) for each in rolled], note)

    for name in PARTS:
        add(f"{name} stops", "s", lambda each, name=name: each.restarts[name].stop_s)  # type: ignore[misc]
        add(f"{name} starts", "s", lambda each, name=name: each.restarts[name].start_s)  # type: ignore[misc]
    for what in RATES:
        add(f"{what}: requests through the client", "", lambda each, what=what: len(_of(each, what)))  # type: ignore[misc]
        failed = {f"{n.status} {n.code}" for each in rolled for n in _of(each, what) if not n.is_good}
        add(
            f"{what}: requests that failed",
            "",
            lambda each, what=what: sum(not n.is_good for n in _of(each, what)),  # type: ignore[misc]
            ", ".join(sorted(failed)),
        )
        add(
            f"longest {what}",
            "s",
            lambda each, what=what: max(n.took_s for n in _of(each, what)),  # type: ignore[misc]
        )
        add(
            f"{what}, p50",
            "s",
            lambda each, what=what: percentile([n.took_s for n in _of(each, what)], 50),  # type: ignore[misc]
        )
    add("jobs that did not succeed", "", lambda each: each.fate.num_lost)
    add("attempts counted as lost", "", lambda each: each.num_losses)
    add("attempts of the fine-tune", "", lambda each: each.training_attempts, rolled[0].training_status)


def _of(rolled: Rolled, what: str) -> list[Noted]:
    return [n for n in rolled.noted if n.what == what]


if __name__ == "__main__":
    stop_in_order()
    options = {"--database": {"choices": DATABASES, "help": "default: both"}}
    sys.exit(run_line(measure, name="rolling", about=__doc__, options=options))
