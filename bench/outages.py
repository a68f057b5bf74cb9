"""Outages: what clients are answered while the database, Redis or the store is away, and what becomes of accepted jobs.

`python -m bench.outages [--full] [--database postgresql] [--only redis]`. A whole Ondol of real processes with default
settings and a tiny model, under single jobs, batches and calls at fixed rates, each request sent once. The database:
PostgreSQL's server process is stopped, SQLite is locked by another writer. Redis: SIGKILL, and a later start. The
store: its folders are read-only for the processes; uploads and jobs with large results come on top.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bench.clusters import DATABASES, Stage, empty_stage
from bench.report import Line, Size, run_line
from bench.stacks import TINY, stop_in_order
from bench.steady_load import Fate, Noted, OneTry, SteadyLoad, fate_of
from ondol.settings import ApiSettings
from tests.outages.faults import (
    LAUNCHER,
    postgres_stopped,
    read_only,
    redis_stopped,
    sqlite_locked,
    why_not_read_only,
)
from tests.waiting import wait_until

OUTAGES = ("database", "redis", "store")
FULL_S = {"database": 30.0, "redis": 60.0, "store": 30.0}
QUICK_S = 12.0
RATES = {"job": 4.0, "batch": 1.0, "call": 4.0, "upload": 1.0, "bulk": 0.2}
SETTLE_S = 5.0
BACK_LIMIT_S = 90.0
DRAIN_LIMIT_S = 240.0
SLACK_S = 2.0
"""On top of a limit, for what comes before and behind the waiting on a busy machine."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One outage: requests from its beginning on, seconds from its end to the first good answer and to the last end."""

    noted: tuple[Noted, ...]
    back_s: dict[str, float]
    drained_s: float
    fate: Fate


@contextlib.contextmanager
def running_stage(folder: Path, database: str) -> Iterator[Stage]:
    """Api, reconciler and one worker."""
    with empty_stage(folder, database) as stage:
        if stage.postgres is None:  # whose socket lies in a folder that only its own user and root's override can enter
            stage.cluster.launcher = LAUNCHER
        stage.cluster.start_api()
        stage.cluster.start_reconciler()
        stage.cluster.start_worker()
        yield stage


def outage_of(stage: Stage, name: str) -> AbstractContextManager[None]:
    """The block during which that part is away."""
    if name == "redis":
        return redis_stopped(stage.redis)
    if name == "store":
        return read_only(store_of(stage))
    return sqlite_locked(stage.sqlite_file) if stage.postgres is None else postgres_stopped(stage.postgres)


def store_of(stage: Stage) -> Path:
    """The folder of the model store."""
    return stage.cluster.folder / "data" / "store"


def see(stage: Stage, name: str, outage_s: float) -> Seen:
    """One outage under load, from the settled load before it to the end of the last accepted job."""
    requests = OneTry(stage.cluster.url, TINY)
    senders = requests.senders() | (requests.store_senders() if name == "store" else {})
    with contextlib.closing(requests), SteadyLoad(senders, RATES) as load:
        _wait(SETTLE_S)
        began_s = load.now_s
        with outage_of(stage, name):
            _wait(outage_s)
        over_s = load.now_s
        back_s = {what: _first_good(load, over_s, what) - over_s for what in senders}
    database = stage.cluster.database
    ids = load.accepted()
    wait_until(
        lambda: fate_of(database, ids).num_unfinished == 0, within_s=DRAIN_LIMIT_S, what="all accepted jobs to end"
    )
    drained_s = load.now_s - over_s
    return Seen(tuple(n for n in load.noted if n.ended_s >= began_s), back_s, drained_s, fate_of(database, ids))


def measure(parsed: argparse.Namespace, size: Size) -> Line:
    """All of it, on one database or on both."""
    databases = [parsed.database] if parsed.database else list(DATABASES)
    chosen = [parsed.only] if parsed.only else list(OUTAGES)
    api = ApiSettings(auth="off")
    limits = {"call": api.call_timeout_s, "job": api.database_limit_s, "batch": api.database_limit_s}
    settings = {"rates": RATES, "limits_s": limits, "outages_s": {name: _length(name, size) for name in chosen}}
    line = Line("outages", "a steady load while a part is away", settings)
    for database in databases:
        with tempfile.TemporaryDirectory(prefix="ondol-bench-", ignore_cleanup_errors=True) as folder:
            try:
                with running_stage(Path(folder), database) as stage:
                    for name in chosen:
                        _take(line, f"{database}, {name}", stage, name, limits, size)
            except ImportError:
                line.leave_out(f"{database}: its wheel is not installed (the extra `dev`)")
    return line


def _take(line: Line, title: str, stage: Stage, name: str, limits: dict[str, float], size: Size) -> None:
    if name == "store" and stage.postgres is not None:
        line.leave_out(f"{title}: the store knows no database; it is measured on SQLite")
        return
    if name == "store" and (reason := why_not_read_only(store_of(stage))) is not None:
        line.leave_out(f"{title}: {reason}")
        return
    seen = [see(stage, name, _length(name, size)) for _ in range(size.rounds if size.is_full else 1)]

    def add(what: str, unit: str, of: Callable[[Seen], float], note: str = "") -> None:
        line.add(f"{title}: {what}", unit, [of(each) for each in seen], note)

    add("requests", "", lambda each: len(each.noted))
    add("answered well", "%", lambda each: 100 * sum(n.is_good for n in each.noted) / len(each.noted))
    add("refused with Retry-After", "", lambda each: sum(n.is_refusal for n in each.noted))
    add("other answers", "", lambda each: len(_others(each)), _told(seen))
    for what in sorted({n.what for n in seen[0].noted}):
        add(f"longest answer to a {what}", "s", lambda each, what=what: _longest(each, what))  # type: ignore[misc]
    add("answers over the api's limits", "", lambda each: sum(_is_late(n, limits) for n in each.noted))
    for what in seen[0].back_s:
        add(f"first good {what} after it", "s", lambda each, what=what: each.back_s[what])  # type: ignore[misc]
    add("accepted jobs", "", lambda each: sum(each.fate.states.values()))
    add("accepted jobs lost", "", lambda each: each.fate.num_lost)
    add("last accepted job ended after it", "s", lambda each: each.drained_s)


def _length(name: str, size: Size) -> float:
    return FULL_S[name] if size.is_full else QUICK_S


def _first_good(load: SteadyLoad, since_s: float, what: str) -> float:
    found = wait_until(lambda: load.good_since(since_s, what), within_s=BACK_LIMIT_S, what=f"a good {what}")
    assert found is not None
    return found.ended_s


def _longest(seen: Seen, what: str) -> float:
    return max(n.took_s for n in seen.noted if n.what == what)


def _is_late(noted: Noted, limits: dict[str, float]) -> bool:
    return noted.what in limits and noted.took_s > limits[noted.what] + SLACK_S


def _others(seen: Seen) -> list[Noted]:
    """Answers that are neither good nor a refusal that says when to come back."""
    return [n for n in seen.noted if not n.is_good and not n.is_refusal]


def _told(seen: Sequence[Seen]) -> str:
    counted = Counter(f"{n.what} {n.status or 'no answer'} {n.code}" for each in seen for n in _others(each))
    return ", ".join(f"{num} × {what}" for what, num in counted.most_common())


def _wait(seconds: float) -> None:
    time.sleep(seconds)  # the length of an outage is what is set here; nothing is waited for


if __name__ == "__main__":
    stop_in_order()
    options = {
        "--database": {"choices": DATABASES, "help": "default: both"},
        "--only": {"choices": OUTAGES, "help": "one outage; default: all"},
    }
    sys.exit(run_line(measure, name="outages", about=__doc__, options=options))
