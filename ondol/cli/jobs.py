"""`ondol jobs`: list, show, watch, result, events, notices, cancel, pause, resume, retry, rm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ondol.cli import exits
from ondol.cli.bulk import check_output, write_result
from ondol.cli.connection import open_client
from ondol.cli.options import LINES, AsJson, Format, JobIdArgument, Output, ResultFormat, format_for
from ondol.cli.output import (
    local_time,
    print_json,
    print_json_line,
    print_pairs,
    print_table,
    seconds,
    write_text,
)
from ondol.cli.watching import event_line, watch
from ondol.cli.webhooks import show_notices
from ondol.client.sync_jobs import Job
from ondol.contract.kinds import JobKind
from ondol.contract.states import JobState

app = typer.Typer(help="Look at jobs and steer them.", no_args_is_help=True)
app.command("notices")(show_notices)


@app.command("ls")
def list_jobs(
    ctx: typer.Context,
    kind: Annotated[JobKind | None, typer.Option(help="Only this kind.", show_default=False)] = None,
    status: Annotated[JobState | None, typer.Option(help="Only this status.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first.

    Example: ondol jobs ls --status failed --limit 5
    """
    with open_client(ctx) as client:
        jobs = list(client.jobs.list(kind=kind, status=status, model=model, limit=limit))
    if as_json:
        print_json({"object": "list", "data": [job.raw for job in jobs]})
    else:
        columns = ("JOB", "KIND", "STATUS", "MODEL", "DONE", "CREATED", "RAN")
        print_table(columns, [_row(job) for job in jobs])


@app.command("show")
def show_job(ctx: typer.Context, job_id: JobIdArgument, as_json: AsJson = False) -> None:
    """Show one job.

    Example: ondol jobs show job_01k9zv6t0m3x5r7c2b8d4f6g1h
    """
    with open_client(ctx) as client:
        job = client.jobs.get(job_id)
    if as_json:
        print_json(job.raw)
    else:
        print_pairs(_pairs(job))


@app.command("watch")
def watch_job(ctx: typer.Context, job_id: JobIdArgument, as_json: AsJson = False) -> int:
    """Watch a job until it ends; exit code 1 if it fails. Ctrl-C ends the watching, not the job.

    Example: ondol jobs watch job_01k9zv6t0m3x5r7c2b8d4f6g1h
    """
    with open_client(ctx) as client:
        return watch(client.jobs.get(job_id), as_json=as_json)


@app.command("result")
def show_result(
    ctx: typer.Context,
    job_id: JobIdArgument,
    result_format: Format = None,
    output: Output = None,
    as_json: AsJson = False,
) -> int:
    """Print or save the result of a job that has ended, streamed; of a cancelled bulk job it is what was done.

    Example: ondol jobs result job_01k9zv6t0m3x5r7c2b8d4f6g1h --format npy --output vectors.npy

    Example: ondol jobs result job_01k9zv6t0m3x5r7c2b8d4f6g1h --output labels.parquet
    """
    wanted = ResultFormat.JSON if as_json else format_for(result_format, output, default=ResultFormat.JSON)
    check_output(output, wanted)
    with open_client(ctx) as client:
        job = client.jobs.get(job_id)
        if wanted in LINES and job.kind in (JobKind.FINE_TUNE, JobKind.IMPORT):  # one object, which is one line
            write_text(json.dumps(client.jobs.result(job_id).raw, ensure_ascii=False) + "\n", output)
            return exits.DONE
        return write_result(client, job, output, wanted)


@app.command("events")
def show_events(
    ctx: typer.Context,
    job_id: JobIdArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more until the job ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what happened to a job; JSON comes one event a line.

    Example: ondol jobs events job_01k9zv6t0m3x5r7c2b8d4f6g1h --follow
    """
    with open_client(ctx) as client:
        for event in client.jobs.events(job_id) if follow else client.jobs.past_events(job_id):
            if as_json:
                print_json_line(event.raw)
            else:
                print(event_line(event), flush=True)


@app.command("cancel")
def cancel_job(ctx: typer.Context, job_id: JobIdArgument, as_json: AsJson = False) -> None:
    """Cancel a job that waits or runs.

    Example: ondol jobs cancel job_01k9zv6t0m3x5r7c2b8d4f6g1h
    """
    with open_client(ctx) as client:
        _print_state(client.jobs.cancel(job_id), as_json=as_json)


@app.command("pause")
def pause_job(ctx: typer.Context, job_id: JobIdArgument, as_json: AsJson = False) -> None:
    """Pause a fine-tune that trains: at its next checkpoint it frees the device.

    Example: ondol jobs pause job_01k9zv6t0m3x5r7c2b8d4f6g1h
    """
    with open_client(ctx) as client:
        _print_state(client.jobs.pause(job_id), as_json=as_json)


@app.command("resume")
def resume_job(ctx: typer.Context, job_id: JobIdArgument, as_json: AsJson = False) -> None:
    """Queue a paused fine-tune again; it goes on from its last checkpoint.

    Example: ondol jobs resume job_01k9zv6t0m3x5r7c2b8d4f6g1h
    """
    with open_client(ctx) as client:
        _print_state(client.jobs.resume(job_id), as_json=as_json)


@app.command("retry")
def retry_job(ctx: typer.Context, job_id: JobIdArgument, as_json: AsJson = False) -> None:
    """Queue a failed job again; its history stays.

    Example: ondol jobs retry job_01k9zv6t0m3x5r7c2b8d4f6g1h
    """
    with open_client(ctx) as client:
        _print_state(client.jobs.retry(job_id), as_json=as_json)


@app.command("rm")
def remove_job(ctx: typer.Context, job_id: JobIdArgument, as_json: AsJson = False) -> None:
    """Delete a job with its inputs, result and events.

    Example: ondol jobs rm job_01k9zv6t0m3x5r7c2b8d4f6g1h
    """
    with open_client(ctx) as client:
        client.jobs.delete(job_id)
    if as_json:
        print_json({"id": job_id, "deleted": True})
    else:
        print(f"{job_id} is deleted")


def _print_state(job: Job, *, as_json: bool) -> None:
    """What a job has become by the command."""
    if as_json:
        print_json(job.raw)
    elif job.pause_requested_at is not None and job.status == JobState.RUNNING:
        print(f"{job.id} will pause at its next checkpoint; `ondol jobs resume {job.id}` goes on from there")
    else:
        print(f"{job.id} is {job.status}")


def _row(job: Job) -> tuple[object, ...]:
    return (job.id, job.kind, job.status, job.model, _done(job), local_time(job.created_at), seconds(job.run_s))


def _pairs(job: Job) -> list[tuple[str, object]]:
    return [
        ("job", job.id),
        ("kind", job.kind),
        ("status", job.status),
        ("error", f"{job.error.code}: {job.error.message}" if job.error else None),
        ("model", job.model),
        ("priority", job.priority),
        ("done", _done(job)),
        ("created", local_time(job.created_at)),
        ("started", local_time(job.started_at)),
        ("finished", local_time(job.finished_at)),
        ("ran", seconds(job.run_s)),
        ("pause asked", local_time(job.pause_requested_at)),
        ("device free", local_time(job.device_released_at)),
        ("attempt", job.attempt),
        ("worker", job.worker),
        ("usage", _said(job.usage)),
        ("timings", _said(job.timings)),
        ("metadata", _said(job.metadata)),
        ("webhook", job.webhook),
    ]


def _said(values: Mapping[str, Any]) -> str | None:
    said = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items())
    return ", ".join(said) or None


def _done(job: Job) -> str | None:
    if job.progress is None:
        return None
    total = "?" if job.progress.total is None else job.progress.total
    return f"{job.progress.done}/{total} {job.progress.unit}"
