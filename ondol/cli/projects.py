"""`ondol projects`: who shares this server, and how much each may use, directly in the database of the settings."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from ondol.cli.database_url import existing_database_url
from ondol.cli.options import AsJson
from ondol.cli.output import print_json, print_table

app = typer.Typer(help="Projects and their shares (on the server's machine).", no_args_is_help=True)

_NO_LIMIT = "none"


@app.command("ls")
def list_projects(as_json: AsJson = False) -> None:
    """List projects with their weights and limits.

    Example: ondol projects ls
    """
    from ondol.control import administration

    found = administration.list_projects(existing_database_url())
    if as_json:
        print_json({"object": "list", "data": [asdict(project) for project in found]})
        return
    print_table(
        ("PROJECT", "WEIGHT", "MAX QUEUED JOBS", "MAX QUEUED TOKENS"),
        [
            (project.name, f"{project.weight:g}", _limit(project.max_queued_jobs), _limit(project.max_queued_tokens))
            for project in found
        ],
    )


@app.command("set")
def set_project(
    name: Annotated[str, typer.Argument(help="The project's name.", show_default=False, metavar="PROJECT")],
    weight: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=100.0, help="Its share beside others while all have jobs waiting.", show_default=False
        ),
    ] = None,
    max_queued_jobs: Annotated[
        str | None,
        typer.Option(help="Most jobs that it may have waiting; none: as the settings say.", show_default=False),
    ] = None,
    max_queued_tokens: Annotated[
        str | None,
        typer.Option(
            help="Most estimated tokens that it may have waiting; none: as the settings say.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change a project's weight or limits; running servers take them up within seconds.

    Example: ondol projects set research --weight 3 --max-queued-jobs 10000
    """
    from ondol.control import administration

    changes: dict[str, Any] = {}
    if weight is not None:
        changes["weight"] = weight
    if max_queued_jobs is not None:
        changes["max_queued_jobs"] = _parsed(max_queued_jobs, "--max-queued-jobs")
    if max_queued_tokens is not None:
        changes["max_queued_tokens"] = _parsed(max_queued_tokens, "--max-queued-tokens")
    if not changes:
        raise typer.BadParameter("give at least one of --weight, --max-queued-jobs and --max-queued-tokens")
    project = administration.set_project(existing_database_url(), name, changes)
    if as_json:
        print_json(asdict(project))
    else:
        limits = f"{_limit(project.max_queued_jobs)} jobs, {_limit(project.max_queued_tokens)} tokens"
        print(f"{project.name}: weight {project.weight:g}; at most waiting: {limits}")


def _limit(value: int | None) -> str:
    return "-" if value is None else str(value)


def _parsed(text: str, option: str) -> int | None:
    if text == _NO_LIMIT:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 10**15:
        raise typer.BadParameter(f"{option} is a number from 1 to 10^15, or none; not {text[:40]!r}")
    return int(text)
