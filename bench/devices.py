"""Devices: bulk work on two devices of one core each beside one device of one core, by wall time.

`python -m bench.devices [--full]`. Both stacks stay up and take turns; the client waits in a long poll, so nothing but
the stack under measurement uses the cores.
"""

from __future__ import annotations

import argparse
import sys

from bench.corpus import docstring_texts
from bench.machine import Meter, Spent, cores
from bench.report import Line, Size, run_line
from bench.stacks import MODEL, running_stack, stop_in_order
from ondol.client.records import JobRequest
from ondol.client.sync_client import Ondol
from ondol.demo.stack import Stack

DEVICES = {1: "cpu:1x1", 2: "cpu:2x1"}
JOB_TEXTS = 250
"""Small enough that two devices end at about the same time."""
WARM_UP_JOBS = 8


def measure(parsed: argparse.Namespace, size: Size) -> Line:
    """All of it; nothing on a machine with one core."""
    num = parsed.num_texts or size.pick(1_000, 2_000)
    line = Line("devices", f"{num} texts as bulk jobs, two devices beside one", {"num_texts": num, "model": MODEL})
    if len(cores()) < 2:
        line.leave_out("two devices: this machine has one core")
        return line
    texts = docstring_texts(num)
    taken: dict[int, list[Spent]] = {number: [] for number in DEVICES}
    with (
        running_stack({"ONDOL_DTYPE": "float32", "ONDOL_ENGINE": "torch", "ONDOL_DEVICES": DEVICES[1]}) as one,
        running_stack({"ONDOL_DTYPE": "float32", "ONDOL_ENGINE": "torch", "ONDOL_DEVICES": DEVICES[2]}) as two,
        Ondol(one.url, timeout=300) as client_of_one,
        Ondol(two.url, timeout=300) as client_of_two,
    ):
        pairs = {1: (one, client_of_one), 2: (two, client_of_two)}
        for stack, client in pairs.values():
            run_bulk(stack, client, texts[: WARM_UP_JOBS * 10], job_texts=10)
        for _ in range(size.rounds):
            for number, (stack, client) in pairs.items():
                taken[number].append(run_bulk(stack, client, texts, job_texts=JOB_TEXTS))
    for number, spent in taken.items():
        line.add(f"{DEVICES[number]}: texts a second", "/s", [num / one_round.wall_s for one_round in spent])
        line.add(f"{DEVICES[number]}: CPU", "s", [one_round.cpu_s for one_round in spent], "all processes")
    over, under = ([one_round.wall_s for one_round in taken[number]] for number in (1, 2))
    line.add_ratio("cpu:2x1 ÷ cpu:1x1, texts a second", over, under)
    return line


def run_bulk(stack: Stack, client: Ondol, texts: list[str], *, job_texts: int) -> Spent:
    """What it took from the first request to the end of the last job."""
    parts = [texts[i : i + job_texts] for i in range(0, len(texts), job_texts)]
    meter = Meter((stack.pid,))
    jobs = [
        client.jobs.submit(JobRequest(kind="embedding", input=part, model=MODEL, priority="bulk")) for part in parts
    ]
    for job in jobs:
        if job.wait().status != "succeeded":
            raise SystemExit(f"bench.devices: {job.id} {job.status}: {job.error}")
    return meter.stop()


if __name__ == "__main__":
    stop_in_order()
    options = {"--num-texts": {"type": int, "help": "default: 1,000, with --full 2,000"}}
    sys.exit(run_line(measure, name="devices", about=__doc__, options=options))
