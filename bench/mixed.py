"""Mixed: calls beside a bulk backlog on one device, and what the backlog loses by them.

`python -m bench.mixed [--full]`. Calls of one short text come at a fixed, low rate, first on an idle stack, then while
bulk jobs of mixed texts are queued; between two such spells of calls the backlog has the device for itself. Rows a
second and the time of a batch come from the worker's `/metrics`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.bare_loop import LATENCY_TEXT
from bench.corpus import docstring_texts
from bench.machine import Meter
from bench.report import Line, Size, percentile, run_line
from bench.scrape import scrape
from bench.stacks import MODEL, free_ports_from, running_stack, stop_in_order
from ondol.client.records import JobRequest
from ondol.client.sync_client import Ondol
from ondol.client.sync_jobs import Job

CALLS_A_SECOND = 5.0
JOB_TEXTS = 1_000
NUM_PORTS = 4
WORKER_PORT = 2
"""Its place among the ports of `ondol up` on one device."""
REST_LIMIT_S = 60.0
SETTLE_S = 1.0
"""Rates are taken from so long after a change of load."""


@dataclass(frozen=True, slots=True)
class Spell:
    """One interval: its calls' milliseconds, rows a second of the backlog, seconds of a batch."""

    call_ms: tuple[float, ...]
    bulk_rows_per_s: float
    batch_ms: float


class Prober:
    """Takes spells of a stack: with or without calls."""

    def __init__(self, client: Ondol, metrics_url: str) -> None:
        self._client = client
        self._metrics_url = metrics_url

    def spell(self, seconds: float, *, with_calls: bool) -> Spell:
        """Blocks for `seconds`, and the moment that the load needs to settle."""
        self._during(SETTLE_S, with_calls=with_calls)
        before, began = scrape(self._metrics_url), time.perf_counter()
        call_ms = self._during(seconds, with_calls=with_calls)
        took, after = time.perf_counter() - began, scrape(self._metrics_url)

        def more(name: str) -> float:
            return after.get(name, 0.0) - before.get(name, 0.0)

        rows = more("ondol_batch_rows_total") - len(call_ms)
        batches = more("ondol_batch_seconds_count")
        batch_ms = more("ondol_batch_seconds_sum") / batches * 1e3 if batches else 0.0
        return Spell(tuple(call_ms), rows / took, batch_ms)

    def wait_until_idle(self) -> None:
        """Return when no batch has run for a while; RuntimeError if the device never comes to rest."""
        end = time.monotonic() + REST_LIMIT_S
        before = -1.0
        while (now := scrape(self._metrics_url).get("ondol_batch_seconds_count", 0.0)) != before:
            if time.monotonic() > end:
                raise RuntimeError("the device did not come to rest after the backlog was cancelled")
            before = now
            threading.Event().wait(SETTLE_S)

    def _during(self, seconds: float, *, with_calls: bool) -> list[float]:
        end = time.monotonic() + seconds
        if with_calls:
            return _calls_until(end, self._one_call)
        threading.Event().wait(seconds)  # the interval over which the backlog has the device for itself
        return []

    def _one_call(self) -> float:
        began = time.perf_counter()
        self._client.embed(LATENCY_TEXT, model=MODEL)
        return (time.perf_counter() - began) * 1e3


def measure(parsed: argparse.Namespace, size: Size) -> Line:
    """All of it."""
    num = parsed.num_texts or size.pick(6_000, 20_000)
    spell_s = parsed.spell_s or float(size.pick(5, 10))
    settings = {"num_texts": num, "rounds": size.rounds, "calls_a_second": CALLS_A_SECOND, "model": MODEL}
    line = Line("mixed", f"calls beside {num:,} queued bulk inputs", settings)
    first_port = free_ports_from(NUM_PORTS)
    with (
        running_stack(
            {"ONDOL_DTYPE": "float32", "ONDOL_ENGINE": "torch", "ONDOL_METRICS_PORT": str(first_port)}
        ) as stack,
        Ondol(stack.url) as client,
    ):
        client.embed(LATENCY_TEXT, model=MODEL)
        prober = Prober(client, f"http://127.0.0.1:{first_port + WORKER_PORT}/metrics")
        idle, alone, beside = [], [], []
        for _ in range(size.rounds):
            idle.append(prober.spell(spell_s, with_calls=True))
            meter = Meter((stack.pid,))
            jobs = submit_backlog(client, num)
            alone.append(prober.spell(spell_s, with_calls=False))
            beside.append(prober.spell(spell_s, with_calls=True))
            _drop_the_rest(jobs)
            prober.wait_until_idle()
            line.settings["cpu_by_process_s"] = meter.stop().by_process
    _figures(line, idle, alone, beside)
    return line


def submit_backlog(client: Ondol, num: int) -> list[Job]:
    """Bulk jobs of so many mixed texts in all."""
    pool = docstring_texts(min(num, 4_000))
    texts = [pool[i % len(pool)] for i in range(num)]
    parts = [texts[i : i + JOB_TEXTS] for i in range(0, num, JOB_TEXTS)]
    return [
        client.jobs.submit(JobRequest(kind="embedding", input=part, model=MODEL, priority="bulk")) for part in parts
    ]


def _drop_the_rest(jobs: list[Job]) -> None:
    if not any(not job.refresh().has_ended for job in jobs):
        raise SystemExit("bench.mixed: the backlog ran out before the measurement: more texts (--num-texts) are needed")
    for job in jobs:
        if not job.refresh().has_ended:
            job.cancel()


def _calls_until(end: float, call: Callable[[], float]) -> list[float]:
    """Milliseconds of calls that begin every 1/CALLS_A_SECOND, or at once when the one before took longer."""
    taken: list[float] = []
    due = time.monotonic()
    while due < end:
        threading.Event().wait(max(0.0, due - time.monotonic()))
        taken.append(call())
        due = max(due + 1 / CALLS_A_SECOND, time.monotonic())
    return taken


def _figures(line: Line, idle: list[Spell], alone: list[Spell], beside: list[Spell]) -> None:
    for name, spells in (("idle", idle), ("under bulk", beside)):
        for percent in (50, 99):
            line.add(f"call, {name}: p{percent}", "ms", [percentile(spell.call_ms, percent) for spell in spells])
    batch_ms = [spell.batch_ms for spell in alone]
    line.add("a bulk batch on the device: mean", "ms", batch_ms)
    line.add("bulk alone", "/s", [spell.bulk_rows_per_s for spell in alone], "rows")
    line.add("bulk beside calls", "/s", [spell.bulk_rows_per_s for spell in beside], "rows")
    line.add_ratio(
        "bulk beside calls ÷ bulk alone",
        [spell.bulk_rows_per_s for spell in beside],
        [spell.bulk_rows_per_s for spell in alone],
    )
    added = [
        (percentile(b.call_ms, 99) - percentile(a.call_ms, 99)) / batch
        for a, b, batch in zip(idle, beside, batch_ms, strict=True)
    ]
    line.add("call p99 added by bulk", "", added, f"in batches of {statistics.median(batch_ms):.0f} ms")


if __name__ == "__main__":
    stop_in_order()
    options = {
        "--num-texts": {"type": int, "help": "default: 6,000, with --full 20,000"},
        "--spell-s": {"type": float, "help": "seconds of each measured interval; default: 5, with --full 10"},
    }
    sys.exit(run_line(measure, name="mixed", about=__doc__, options=options))
