"""`python -m workers.training.child --plan plan.json --events-fd N`: pin the process, train, report on descriptor N.

Exit status 0 after `finished`, `stopped` or `failed`; anything else means that the child itself broke, and its
traceback is on standard error.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ondol.contract.errors import OndolError
from ondol.logs import configure_logging
from ondol.settings import LogSettings, load_settings
from workers.device.arguments import DeviceArguments
from workers.device.lifeline import bind_to_parent, lead_process_group
from workers.device.pinning import pin
from workers.training.child.events import EventWriter
from workers.training.child.stopping import StopRequest
from workers.training.plan import TrainPlan, parse_plan

if TYPE_CHECKING:
    import torch


def main(argv: list[str]) -> int:
    """Run one training; the supervisor ends it with SIGTERM (checkpoint, then stop) or SIGKILL."""
    parser = argparse.ArgumentParser(prog="workers.training.child", description="Trains one model as a plan says.")
    parser.add_argument("--plan", type=Path, required=True, help="the plan file")
    parser.add_argument("--events-fd", type=int, required=True, help="inherited descriptor that takes the events")
    # Told, not asked for: a parent that died while this process was imported would be taken for whoever reaps it.
    parser.add_argument("--parent-pid", type=int, default=os.getppid(), help="the process with which this one ends")
    parsed = parser.parse_args(argv)
    bind_to_parent(parsed.parent_pid)
    lead_process_group()
    stop = StopRequest()
    stop.listen()
    events = EventWriter(parsed.events_fd)
    plan = parse_plan(parsed.plan.read_bytes())
    settings = load_settings(LogSettings)
    configure_logging(settings.log_level, settings.log_format, process="trainer")
    gc.disable()  # of the half million objects that the imports make, none goes away
    device = _compose(plan)
    from workers.training.child.run import run_training  # torch and transformers: only after pinning

    gc.freeze()
    gc.enable()

    try:
        run_training(plan, events, stop, device)
    except OndolError as exc:
        events.send_failed(exc)
    return 0


def _compose(plan: TrainPlan) -> torch.device:
    """Pin the process, import torch and give it its threads; the device."""
    cores = tuple(plan.cores) if plan.cores else tuple(sorted(os.sched_getaffinity(0)))
    device = plan.device
    pin(DeviceArguments(fd=-1, device=device, cores=cores, threads=plan.threads, memory_bytes=0, batch_tokens=0))
    # Of the libraries' warnings none is for the reader of a training log.
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(plan.threads)
    torch.set_num_interop_threads(1)
    if not device.startswith("cuda"):
        return torch.device("cpu")
    from workers.device.device_kinds import avoid_slow_kernels

    torch.use_deterministic_algorithms(True, warn_only=True)
    shown = torch.device("cuda", 0)
    avoid_slow_kernels(shown)
    return shown


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
