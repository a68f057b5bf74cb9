"""One chaos run: a world, clients, a nemesis; then healing, draining, and the verdict."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import snapshot
from tests.chaos.checker import PARALLEL_SLACK_S, SERIAL_SLACK_S, Evidence, Violation, accepted_ids, check_all, num_by
from tests.chaos.clients import Client, Shared
from tests.chaos.history import History, Kind
from tests.chaos.nemesis import Nemesis
from tests.chaos.plan import make_plan
from tests.chaos.world import Size, World, running_world

DRAIN_LIMIT_S = 90.0
REST_LIMIT_S = 20.0
_CLIENT_LIMIT_S = 60.0
_NUM_READ_AT_END = 150

_ABOUT_LOST_JOBS = frozenset({"accepted jobs are known", "every job ends"})


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is made of. `kinds`: faults that may be chosen (empty: all); with `is_calm` nothing is broken."""

    seed: int
    seconds: float
    size: Size = field(default_factory=Size)
    kinds: tuple[str, ...] = ()
    is_calm: bool = False
    num_clients: int = 4
    num_fine_tunes: int = 2
    drain_limit_s: float = DRAIN_LIMIT_S

    def command(self) -> str:
        """How to repeat the run."""
        database = "postgresql" if self.size.is_postgresql else "sqlite"
        words = [f"make chaos SEED={self.seed} MINUTES={self.seconds / 60:g} DATABASE={database}"]
        extra = [f"--faults {','.join(self.kinds)}"] if self.kinds else []
        extra += ["--calm"] if self.is_calm else []
        extra += [] if self.size.has_trainer else ["--no-trainer"]
        return " ".join([*words, f'ARGS="{" ".join(extra)}"'] if extra else words)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The report as plain data, and what did not hold."""

    report: dict[str, Any]
    violations: list[Violation] = field(default_factory=list)


def run_chaos(options: Options, folder: Path, *, model: Path | None = None) -> Outcome:
    """Run and judge. Everything that it writes is under `folder`: history, logs of all processes, databases."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(options.seed)
    plan = [] if options.is_calm else make_plan(rng, seconds=options.seconds, size=options.size, kinds=options.kinds)
    seeds = [rng.getrandbits(32) for _ in range(options.num_clients + 1)]
    began_at = time.monotonic()
    with (
        History(folder / "history.jsonl") as history,
        running_world(folder, options.size, history, model=model) as world,
    ):
        ready_at = time.monotonic()
        oracle = world.oracle()
        shared, stop = Shared(), threading.Event()
        clients = [
            Client(f"c{i}", world.cluster.url, seed, history, oracle, shared, stop) for i, seed in enumerate(seeds[:-1])
        ]
        trainers = _start_fine_tunes(
            options, Client("trainer", world.cluster.url, seeds[-1], history, oracle, shared, stop)
        )
        nemesis = Nemesis(world, plan)
        for client in clients:
            client.start()
        _disturb(options, nemesis, stop)
        stop.set()
        for thread in (*clients, *trainers):
            thread.join(timeout=_CLIENT_LIMIT_S)
        nemesis.wait(lambda: _num_unfinished(world) == 0, within_s=options.drain_limit_s)
        nemesis.join()
        nemesis.wait(lambda: _is_at_rest(world), within_s=REST_LIMIT_S)
        reader = Client("reader", world.cluster.url, 0, history, oracle, shared, threading.Event())
        for job in shared.jobs[-_NUM_READ_AT_END:]:
            reader.look_at(job)
        reader.close()
        for client in clients:
            if client.crash is not None:
                raise client.crash
        found = snapshot.take(world.cluster.database, world.store, has_canary=world.has_canary())
        slack_s = PARALLEL_SLACK_S if options.size.is_postgresql else SERIAL_SLACK_S
        evidence = Evidence(history, found, shared.inputs, oracle, options.is_calm, slack_s)
        violations = check_all(evidence)
        took = {"start_s": round(ready_at - began_at, 1), "all_s": round(time.monotonic() - began_at, 1)}
        return Outcome(_report(options, evidence, nemesis, took, violations), violations)


def _disturb(options: Options, nemesis: Nemesis, stop: threading.Event) -> None:
    """Faults for as long as the plan says; without a plan only time passes."""
    began_at = time.monotonic()
    nemesis.run(stop)
    nemesis.wait(lambda: time.monotonic() - began_at >= options.seconds, within_s=options.seconds)


def _start_fine_tunes(options: Options, client: Client) -> list[threading.Thread]:
    """One after the other, from a thread of their own."""
    if not options.size.has_trainer or not options.num_fine_tunes:
        client.close()
        return []

    def train() -> None:
        for _ in range(options.num_fine_tunes):
            client.fine_tune()
        client.close()

    thread = threading.Thread(target=train, name="fine-tunes", daemon=True)
    thread.start()
    return [thread]


def _num_unfinished(world: World) -> int:
    return snapshot.num_unfinished(world.cluster.database)


def _is_at_rest(world: World) -> bool:
    return snapshot.num_messages(world.cluster.database) == 0 and world.has_canary()


def _report(
    options: Options, evidence: Evidence, nemesis: Nemesis, took: dict[str, float], violations: Sequence[Violation]
) -> dict[str, Any]:
    history, found = evidence.history, evidence.snapshot
    begun = [entry for entry in history.of(Kind.FAULT) if entry.data["phase"] == "begin"]
    faults: dict[str, int] = {}
    for entry in begun:
        faults[entry.op] = faults.get(entry.op, 0) + 1
    whole = [job for job in found.jobs.values() if job.parent_id is None]
    states: dict[str, int] = {}
    for job in whole:
        states[job.state] = states.get(job.state, 0) + 1
    outcomes: dict[str, int] = {}
    for rows in found.attempts.values():
        for row in rows:
            outcomes[str(row.outcome)] = outcomes.get(str(row.outcome), 0) + 1
    answers = {kind.value: len(history.of(kind)) for kind in (Kind.OK, Kind.FAIL)}
    unknown = num_by(history.of(Kind.UNKNOWN), "code")
    return {
        "command": options.command(),
        "options": {**asdict(options), "size": asdict(options.size)},
        "faults": dict(sorted(faults.items())),
        "num_faults": len(begun),
        "accepted": len(accepted_ids(history)),
        "jobs": dict(sorted(states.items())),
        "shards": sum(job.parent_id is not None for job in found.jobs.values()),
        "attempts": dict(sorted(outcomes.items())),
        "stale_writes_refused": sum(zombie.refused.num for zombie in nemesis.zombies),
        "restarts": num_by(history.of(Kind.NOTE, "restarted"), "process"),
        "repairs": dict(sorted(found.repairs.items())),
        "answers": {**answers, "unknown": unknown},
        "lost": sum(violation.invariant in _ABOUT_LOST_JOBS for violation in violations),
        "violations": [str(violation) for violation in violations],
        "took": took,
    }


def remove(folder: Path) -> None:
    """Throw the files of a good run away."""
    shutil.rmtree(folder, ignore_errors=True)
