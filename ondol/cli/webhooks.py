"""`ondol webhooks`: the secret that signs; and what was told of a job's ends, for `ondol jobs notices`."""

from __future__ import annotations

from typing import Annotated

import typer

from ondol.cli.connection import open_client
from ondol.cli.options import AsJson, JobIdArgument
from ondol.cli.output import local_time, print_json, print_table
from ondol.client.webhook_flows import JobNotice

app = typer.Typer(help="Webhooks, which tell a URL how a job ended.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `secret` a command of its own, however few there are."""


@app.command("secret")
def show_secret(
    ctx: typer.Context,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make a fresh one; the one before signs nothing any more.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the secret that signs the project's webhooks; receivers verify with it.

    Example: export ONDOL_WEBHOOK_SECRET=$(ondol webhooks secret)
    """
    with open_client(ctx) as client:
        secret = client.webhooks.rotate_secret() if rotate else client.webhooks.secret()
    if as_json:
        print_json({"object": "webhook.secret", "secret": secret})
    else:
        print(secret)


def show_notices(
    ctx: typer.Context,
    job_id: JobIdArgument,
    redeliver: Annotated[
        str | None, typer.Option(metavar="NOTICE", help="Tell this notice again, now.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show who is told of a job's ends, and how that goes; or tell one again.

    Example: ondol jobs notices job_01k9zv6t0m3x5r7c2b8d4f6g1h
    """
    with open_client(ctx) as client:
        found = client.jobs.notices(job_id) if redeliver is None else [client.jobs.redeliver(job_id, redeliver)]
    if as_json:
        raw = [notice.raw for notice in found]
        print_json({"object": "list", "data": raw} if redeliver is None else raw[0])
        return
    print_table(
        ("NOTICE", "CHANNEL", "STATUS", "TRIES", "LAST ANSWER", "NEXT TRY", "ACCEPTED"), [_row(each) for each in found]
    )


def _row(notice: JobNotice) -> tuple[object, ...]:
    return (
        notice.id,
        notice.channel,
        notice.status,
        notice.num_tries,
        notice.last_answer,
        local_time(notice.next_try_at),
        local_time(notice.accepted_at),
    )
