"""Watching a job until it ends: its events as JSON lines, a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys

from ondol.cli import exits
from ondol.cli.output import print_json_line
from ondol.cli.trained import print_trained
from ondol.client.records import JobEvent
from ondol.client.sync_jobs import Job
from ondol.client.training_report import TrainingReport
from ondol.contract.kinds import JobKind


def watch(job: Job, *, as_json: bool) -> int:
    """Exit code 0 if the job succeeds, 1 if it fails or is cancelled; blocks until then. 130: Ctrl-C; it goes on.

    Of a fine-tune that succeeds, the result is printed too; as JSON it is the line after the events.
    """
    try:
        _follow(job, as_json=as_json)
    except KeyboardInterrupt:
        return exits.fail(
            f"no longer watching; job {job.id} goes on: `ondol jobs watch {job.id}` watches it again,"
            f" `ondol jobs cancel {job.id}` ends it",
            exits.INTERRUPTED,
        )
    code = report_end(job)
    if code == exits.DONE and job.kind == JobKind.FINE_TUNE:
        result = job.result()
        print_json_line(result.raw) if as_json else print_trained(result)
    return code


def report_end(job: Job) -> int:
    """The exit code for how the job ended, with a line on stderr if that was not success."""
    if job.status == "succeeded":
        return exits.DONE
    why = f": {job.error.code}: {job.error.message}" if job.error else ""
    return exits.fail(f"job {job.id} is {job.status}{why}", exits.JOB_FAILED)


def event_line(event: JobEvent) -> str:
    """An event as one line for people."""
    at = event.created_at.astimezone().strftime("%H:%M:%S")
    if event.type == "state":
        before, after = event.data.get("from"), event.data.get("to")
        change = f"{before} -> {after}" if before else str(after)
        details = {key: event.data.get(key) for key in ("reason", "attempt", "worker")}
    else:
        change, details = event.type, dict(event.data)
    said = " ".join(f"{key}={value}" for key, value in details.items() if value not in (None, ""))
    return f"{event.seq:>4} {at} {change} {said}".rstrip()


def _follow(job: Job, *, as_json: bool) -> None:
    """Show what happens until the job has ended, and bring it up to date."""
    if as_json:
        for event in job.events():
            print_json_line(event.raw)
    elif job.kind == JobKind.FINE_TUNE:
        with TrainingReport(job) as report:
            for event in job.events():
                report.take(event)
    elif sys.stderr.isatty():
        job.wait(progress=True)
    else:
        for event in job.events():
            print(event_line(event), flush=True)
    job.refresh()
