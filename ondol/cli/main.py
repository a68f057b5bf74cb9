"""The entry point `ondol`: registers the commands, and turns every outcome into an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from ondol.cli import (
    classify,
    database,
    dead_letters,
    demo,
    doctor,
    embed,
    exits,
    files,
    fine_tune,
    jobs,
    keys,
    models,
    processes,
    projects,
    webhooks,
)

app = typer.Typer(
    name="ondol",
    help="Ondol, the job system for transformer models. Start with `ondol up`; then `ondol embed hello`.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command()(processes.up)
app.command()(processes.api)
app.command()(processes.worker)
app.command()(processes.trainer)
app.command()(processes.intake)
app.command()(processes.reconciler)
app.command()(processes.flower)
app.command()(embed.embed)
app.command()(classify.classify)
app.command()(classify.tag)
app.command()(fine_tune.fine_tune)
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
app.add_typer(files.app, name="files")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(keys.app, name="keys")
app.add_typer(projects.app, name="projects")
app.add_typer(database.app, name="db")
app.add_typer(dead_letters.app, name="dead-letters")
app.command()(doctor.doctor)
app.command()(demo.demo)


@app.callback()
def _root(
    ctx: typer.Context,
    url: Annotated[
        str | None, typer.Option("--url", help="The server; ONDOL_URL by default.", show_default=False)
    ] = None,
) -> None:
    ctx.obj = url


def main() -> None:
    """Run the command line; ends the process with 0, 1 (the job failed), 2 (wrong use) or 3 (no server)."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """The exit code of one command; nothing but SystemExit of a bad setting leaves it."""
    return exits.run_guarded(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    try:
        code: object = app(args=list(arguments), standalone_mode=False, prog_name="ondol")
    except TyperException as error:
        return _wrong_use(error)
    except typer.Abort:
        return exits.fail("interrupted", exits.INTERRUPTED)
    return code if isinstance(code, int) else exits.DONE


def _wrong_use(error: TyperException) -> int:
    message = error.format_message()
    if not message:  # the help was printed, as for `ondol jobs`
        return exits.WRONG_USE
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "ondol"
    return exits.fail(f"{message.rstrip('.')} - see `{command} --help`", exits.WRONG_USE)


if __name__ == "__main__":
    main()
