"""Overload: ten times what a stack can do, for minutes: all that is accepted ends, and refusals say when to come back.

`python -m bench.overload [--full] [--minutes M]`. Requests of many jobs each come at a fixed rate, whatever is
answered. The truth about a refusal is the time from its answer until the refused jobs had found room, had nobody else
come: every job's row says when it was claimed, so it is known to the millisecond when as many had left the queue as
were too many. Jobs of requests that were sent before the refusal was answered count as being before it. What is told is
judged as being between half of the truth and twice as much: `retry-after-ms` (which Ondol's and OpenAI's clients obey)
against the truth; `Retry-After`, which has whole seconds and no zero, against the truth, and against the truth as such
a header can tell it, in whole seconds. The memory of each process is read once a second.
"""

from __future__ import annotations

import argparse
import bisect
import concurrent.futures
import itertools
import math
import sqlite3
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.corpus import docstring_texts
from bench.report import Line, Series, Size, percentile, run_line
from bench.stacks import MODEL, running_stack
from ondol.demo.stack import Stack

TIMES = 10
"""How much more is offered than the stack can do."""
TEXTS_A_JOB = 4
REQUEST_S, QUEUE_S = 8.0, 30.0
"""How long the jobs of one request, and those of a full queue, take."""
SAMPLE_S = 0.25
MAX_BATCH = 1_000
_SETTINGS = {
    "ONDOL_DTYPE": "float32",
    "ONDOL_ENGINE": "torch",
    "ONDOL_MESSAGE_JOBS": "16",  # jobs leave the queue a message at a time: the truth has small steps
}
MB = 1024 * 1024
_QUEUED = "SELECT count(*) FROM jobs WHERE state = 'queued' AND kind = 'embedding'"
_LEFT = "SELECT started_at FROM jobs WHERE kind = 'embedding' AND started_at IS NOT NULL ORDER BY started_at"
_ENDED = "SELECT state, count(*) FROM jobs WHERE kind = 'embedding' GROUP BY state"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One 429: when it was answered, of how many jobs, and what `Retry-After` and `retry-after-ms` told (seconds)."""

    at: float
    num_jobs: int
    whole_s: float
    exact_s: float


@dataclass(frozen=True, slots=True)
class Judged:
    """A refusal, and after how many seconds there was room in truth."""

    told: Refusal
    truth_s: float

    @property
    def whole_truth_s(self) -> float:
        """The truth as `Retry-After` could tell it at best."""
        return max(1.0, math.ceil(self.truth_s))


@dataclass(slots=True)
class Seen:
    """What a run has seen; times are seconds by the clock of the machine, which is the database's, too.

    `accepted`: when each request was sent, and of how many jobs. `left_at`: when each job left the queue, in order.
    """

    accepted: list[tuple[float, int]] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    other: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    queued: list[tuple[float, int]] = field(default_factory=list)
    left_at: list[float] = field(default_factory=list)
    rss: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))


class Overload:
    """Offers requests at a rate and watches; `seen` is complete when `run` has returned."""

    def __init__(self, stack: Stack, texts: Sequence[str]) -> None:
        self.seen = Seen()
        self._stack = stack
        self._http = httpx.Client(base_url=stack.url, timeout=60, trust_env=False)
        self._texts = texts
        self._lock = threading.Lock()
        self._is_over = threading.Event()

    def close(self) -> None:
        """Close the client."""
        self._http.close()

    def offer(self, num_jobs: int) -> None:
        """One request of so many jobs, in one transaction; what was answered is noted."""
        start = time.monotonic_ns() % len(self._texts)
        inputs = [self._some(start + i * TEXTS_A_JOB) for i in range(num_jobs)]
        jobs = [{"kind": "embedding", "model": MODEL, "input": some} for some in inputs]
        sent_at = time.time()
        answer = self._http.post("/v1/jobs/batch", json={"jobs": jobs})
        with self._lock:
            if answer.status_code == 200:
                self.seen.accepted.append((sent_at, num_jobs))
            elif answer.status_code == 429:
                self.seen.refused.append(_refusal(answer, num_jobs))
            else:
                self.seen.other[answer.status_code] += 1

    def run(self, seconds: float, *, num_jobs: int, requests_per_s: float) -> None:
        """Offer for so long; the sampler goes on until everything has ended."""
        watching = threading.Thread(target=self._watch)
        watching.start()
        try:
            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                begun, offered = time.monotonic(), []
                for number in range(int(seconds * requests_per_s)):
                    self._is_over.wait(max(0.0, begun + number / requests_per_s - time.monotonic()))
                    offered.append(pool.submit(self.offer, num_jobs))
                for one in offered:
                    one.result()
            self.wait_for_all(seconds)
        finally:
            self._is_over.set()
            watching.join()
        self.seen.left_at = [at for (at,) in self._rows(_LEFT)]

    def wait_for_all(self, limit_s: float) -> None:
        """Return when nothing is queued or running; SystemExit if that takes over `limit_s` and two minutes."""
        until = time.monotonic() + limit_s + 120
        while any(num for state, num in self.states().items() if state in ("queued", "running")):
            if time.monotonic() > until:
                raise SystemExit(f"bench.overload: jobs have not ended: {self.states()}")
            threading.Event().wait(SAMPLE_S)

    def states(self) -> dict[str, int]:
        """How many jobs are in each state."""
        return dict(self._rows(_ENDED))

    def _some(self, start: int) -> list[str]:
        return [self._texts[(start + i) % len(self._texts)] for i in range(TEXTS_A_JOB)]

    def _rows(self, query: str) -> list[Any]:
        url = f"file:{self._stack.data_dir / 'ondol.db'}?mode=ro"
        connection = sqlite3.connect(url, uri=True, timeout=30)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def _watch(self) -> None:
        next_memory_at = 0.0
        while not self._is_over.wait(SAMPLE_S):
            self.seen.queued.append((time.time(), self._rows(_QUEUED)[0][0]))
            if time.monotonic() >= next_memory_at:
                next_memory_at = time.monotonic() + 1.0
                for name, rss in memory_of(self._stack.pid).items():
                    self.seen.rss[name].append((time.time(), rss / MB))


def memory_of(pid: int) -> dict[str, int]:
    """Resident bytes of the processes of a stack, by the module that each runs."""
    found: dict[str, int] = defaultdict(int)
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            found[_name(process.cmdline())] += process.memory_info().rss
        except psutil.Error:
            continue  # it ended meanwhile
    return found


def _name(command: Sequence[str]) -> str:
    if "-m" in command:
        return command[command.index("-m") + 1].removesuffix(".main")
    return Path(command[0]).name if command else "ended"


def _refusal(answer: httpx.Response, num_jobs: int) -> Refusal:
    exact_s = float(answer.headers["retry-after-ms"]) / 1000
    return Refusal(time.time(), num_jobs, float(answer.headers["retry-after"]), exact_s)


def judge(seen: Seen, max_jobs: int) -> list[Judged]:
    """Each refusal beside the truth; those that would not have found room before the end are left out."""
    sent = sorted(seen.accepted)
    sent_at, sums = [at for at, _ in sent], [0, *itertools.accumulate(num for _, num in sent)]
    found = []
    for refusal in seen.refused:
        num_to_leave = sums[bisect.bisect_right(sent_at, refusal.at)] + refusal.num_jobs - max_jobs
        if num_to_leave <= len(seen.left_at):
            room_at = seen.left_at[num_to_leave - 1] if num_to_leave > 0 else refusal.at
            found.append(Judged(refusal, max(0.0, room_at - refusal.at)))
    return found


def measure(parsed: argparse.Namespace, size: Size) -> Line:
    """All of it."""
    minutes = parsed.minutes or float(size.pick(1, 5))
    texts = docstring_texts(4_000)
    capacity = _capacity(texts)
    num_jobs = min(MAX_BATCH, max(1, round(capacity * REQUEST_S)))
    max_jobs = round(capacity * QUEUE_S)
    requests_per_s = TIMES * capacity / num_jobs
    settings = {
        "minutes": minutes,
        "capacity_jobs_per_s": capacity,
        "jobs_a_request": num_jobs,
        "texts_a_job": TEXTS_A_JOB,
        "max_queued_jobs": max_jobs,
        "requests_per_s": requests_per_s,
        "model": MODEL,
    }
    line = Line("overload", f"{TIMES} times what the stack can do, for {minutes:g} minutes", settings)
    with running_stack(_SETTINGS | {"ONDOL_MAX_QUEUED_JOBS": str(max_jobs)}) as stack:
        overload = Overload(stack, texts)
        overload.offer(1)
        overload.run(60 * minutes, num_jobs=num_jobs, requests_per_s=requests_per_s)
        states = overload.states()
        overload.close()
    _figures(line, overload.seen, states, max_jobs)
    return line


def _capacity(texts: Sequence[str]) -> float:
    """Jobs a second of a stack that has nothing else to do."""
    with running_stack(_SETTINGS) as stack:
        overload = Overload(stack, texts)
        overload.offer(10)
        overload.wait_for_all(60)
        num, begun = 200, time.monotonic()
        overload.offer(num)
        overload.wait_for_all(300)
        overload.close()
    return num / (time.monotonic() - begun)


def _figures(line: Line, seen: Seen, states: dict[str, int], max_jobs: int) -> None:
    accepted = sum(num for _, num in seen.accepted)
    line.add("jobs offered", "", [accepted + sum(one.num_jobs for one in seen.refused)])
    line.add("jobs accepted", "", [accepted])
    line.add("accepted jobs that succeeded", "ratio", [states.get("succeeded", 0) / accepted])
    line.add("answers other than 200 and 429", "", [sum(seen.other.values())], note=str(dict(seen.other) or ""))
    line.add("most jobs queued, of what may wait", "ratio", [max(num for _, num in seen.queued) / max_jobs])
    _told_figures(line, judge(seen, max_jobs))
    began = min(at for at, _ in seen.queued)
    for name, points in sorted(seen.rss.items()):
        line.add(
            f"{name}: most memory", "MB", [max(mb for _, mb in points)], f"{points[len(points) // 5][1]:.0f} early"
        )
        curve = tuple((at - began, mb) for at, mb in points)
        line.series.append(Series("memory", name, "seconds", "MB resident", curve))


def _told_figures(line: Line, judged: Sequence[Judged]) -> None:
    if not judged:
        line.leave_out("Retry-After against the truth: nothing was refused")
        return
    for name, pairs in (
        ("retry-after-ms: within twice the truth", [(one.told.exact_s, one.truth_s) for one in judged]),
        ("Retry-After: within twice the truth", [(one.told.whole_s, one.truth_s) for one in judged]),
        ("Retry-After: the same in whole seconds", [(one.told.whole_s, one.whole_truth_s) for one in judged]),
    ):
        line.add(name, "ratio", [sum(truth / 2 <= told <= 2 * truth for told, truth in pairs) / len(pairs)])
    late = [one.told.exact_s - one.truth_s for one in judged]
    line.add("retry-after-ms: not before there was room", "ratio", [sum(s >= 0 for s in late) / len(late)])
    for percent in (5, 50, 95):
        line.add(f"retry-after-ms less the truth, percentile {percent}", "s", [percentile(late, percent)])
    line.add("truth, median", "s", [percentile([one.truth_s for one in judged], 50)], f"{len(judged)} refusals")
    began = judged[0].told.at
    told = tuple((one.told.at - began, one.told.exact_s) for one in judged)
    true = tuple((one.told.at - began, one.truth_s) for one in judged)
    for name, curve in (("told", told), ("truth", true)):
        line.series.append(Series("retry_after", name, "seconds", "seconds", curve))


def main() -> int:
    """The command line."""
    options = {"--minutes": {"type": float, "help": "how long to offer; default: 5 with --full, else 1"}}
    return run_line(measure, name="overload", about=__doc__, options=options)


if __name__ == "__main__":
    sys.exit(main())
