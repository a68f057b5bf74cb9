"""Scale: what a job costs in SQL with a thousand to a million finished ones beside it, on both databases.

`python -m bench.scale [--full]`. Finished rows are synthetic (`bench.synthetic`), workers are simulated
(`bench.simulated`): processes that ring, claim and complete, nothing else. The plans of their statements are kept too.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import Meter
from bench.plans import explain
from bench.report import Line, Series, Size, run_line
from bench.rounds import Peer
from bench.simulated import add_jobs, simulated_worker
from bench.stacks import running_postgres, stop_in_order
from bench.synthetic import fill_up_to
from ondol.control.administration import upgrade_database
from ondol.sql.database import Database

QUICK_ROWS, FULL_ROWS = (1_000, 20_000), (1_000, 100_000, 1_000_000)
QUICK_WORKERS, FULL_WORKERS = (1, 8), (1, 8, 32)
SUBMIT = 1_000
Point = tuple[str, int, int]
"""Database, finished rows, workers."""


@dataclass(slots=True)
class Taken:
    """Rounds of each point: jobs a second, and CPU milliseconds a job of the workers and the database's server."""

    per_s: dict[Point, list[float]] = field(default_factory=dict)
    cpu_ms: dict[Point, list[float]] = field(default_factory=dict)


def measure(parsed: argparse.Namespace, size: Size) -> Line:
    """All of it."""
    num = parsed.num_jobs or size.pick(1_000, 3_000)
    rows = tuple(parsed.rows or (FULL_ROWS if size.is_full else QUICK_ROWS))
    workers = tuple(parsed.workers or (FULL_WORKERS if size.is_full else QUICK_WORKERS))
    settings = {"num_jobs": num, "rows": rows, "workers": workers, "rounds": size.rounds}
    line = Line("scale", "ring, claim and complete one-text jobs beside finished ones (simulated workers)", settings)
    taken = Taken()
    with tempfile.TemporaryDirectory(prefix="ondol-bench-") as folder:
        url = f"sqlite:///{Path(folder) / 'ondol.db'}"
        _one_database(line, taken, "SQLite", url, None, settings)
    try:
        with running_postgres() as server:
            _one_database(line, taken, "PostgreSQL", server.url, server.pid, settings)
    except ImportError:
        line.leave_out("PostgreSQL: its wheel is not installed (the extra `dev`)")
    _figures(line, taken)
    return line


def _one_database(
    line: Line, taken: Taken, name: str, url: str, server_pid: int | None, settings: dict[str, object]
) -> None:
    rows, workers, rounds = settings["rows"], settings["workers"], settings["rounds"]
    assert isinstance(rows, tuple)
    assert isinstance(workers, tuple)
    assert isinstance(rounds, int)
    num = int(str(settings["num_jobs"]))
    upgrade_database(url)
    with Peer(["bench.simulated", "--database", url]) as peer:
        for num_rows in rows:
            with simulated_worker(url) as worker:
                fill_up_to(worker.database, worker, num_rows)
                plans = explain(worker)
            line.texts[f"plans, {name}, {num_rows:,} finished"] = "\n\n".join(plan.as_text() for plan in plans)
            scans = [f"{plan.step}: {scan}" for plan in plans for scan in plan.scans]
            line.add(f"{name}, {num_rows:,} finished: whole tables read", "", [len(scans)], "; ".join(scans)[:200])
            for _ in range(rounds):
                for num_workers in workers:
                    _one_round(taken, (name, num_rows, num_workers), url, peer, num, server_pid)


def _one_round(taken: Taken, point: Point, url: str, peer: Peer, num: int, server_pid: int | None) -> None:
    with contextlib.closing(Database(url)) as database:
        for first in range(0, num, SUBMIT):
            add_jobs(database, min(SUBMIT, num - first))
    meter = Meter((server_pid,) if server_pid else (), counts_self=False)
    found = peer.run(num_workers=point[2], num_jobs=num)
    if found["num"] != num:
        raise RuntimeError(f"the simulated workers completed {found['num']} of {num} jobs")
    cpu_s = found["cpu_s"] + meter.stop().cpu_s
    taken.per_s.setdefault(point, []).append(num / found["wall_s"])
    taken.cpu_ms.setdefault(point, []).append(cpu_s / num * 1e3)


def _figures(line: Line, taken: Taken) -> None:
    for point, per_s in taken.per_s.items():
        name, num_rows, num_workers = point
        what = f"{name}, {num_rows:,} finished, {num_workers} simulated"
        line.add(f"{what}: jobs a second", "/s", per_s)
        line.add(f"{what}: CPU a job", "ms", taken.cpu_ms[point])
    for plot, y_label, values in (
        ("jobs a second", "jobs/s", taken.per_s),
        ("CPU a job", "CPU ms a job", taken.cpu_ms),
    ):
        for name, num_workers in dict.fromkeys((point[0], point[2]) for point in values):
            points = tuple(
                (float(point[1]), sorted(found)[len(found) // 2])
                for point, found in values.items()
                if (point[0], point[2]) == (name, num_workers)
            )
            line.series.append(
                Series(plot, f"{name}, {num_workers} simulated", "finished jobs in the tables", y_label, points)
            )


if __name__ == "__main__":
    stop_in_order()
    options = {
        "--num-jobs": {"type": int, "help": "jobs a round; default: 1,000, with --full 3,000"},
        "--rows": {"type": int, "nargs": "+", "help": "finished jobs in the tables, ascending"},
        "--workers": {"type": int, "nargs": "+", "help": "simulated workers"},
    }
    sys.exit(run_line(measure, name="scale", about=__doc__, options=options))
