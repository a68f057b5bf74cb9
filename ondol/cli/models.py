"""`ondol models`: list, show, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ondol.cli.connection import open_client
from ondol.cli.options import AsJson
from ondol.cli.output import local_time, print_json, print_pairs, print_table
from ondol.cli.watching import watch

app = typer.Typer(help="Models and their versions.", no_args_is_help=True)


@app.command("ls")
def list_models(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the models that requests can name.

    Example: ondol models ls
    """
    with open_client(ctx) as client:
        models = client.models.list()
    if as_json:
        print_json({"object": "list", "data": [model.raw for model in models]})
    else:
        rows = [(model.id, local_time(model.created_at), model.owned_by) for model in models]
        print_table(("MODEL", "CREATED", "OWNER"), rows)


@app.command("show")
def show_model(
    ctx: typer.Context,
    ref: Annotated[str, typer.Argument(help="name, name:3 or name@alias", show_default=False, metavar="MODEL")],
    as_json: AsJson = False,
) -> None:
    """Show one model.

    Example: ondol models show all-minilm-l6-v2
    """
    with open_client(ctx) as client:
        model = client.models.get(ref)
    if as_json:
        print_json(model.raw)
    else:
        print_pairs((name, _shown(value)) for name, value in model.raw.items() if name not in ("object", "created"))


@app.command("import")
def import_model(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Model folder on the server's machine.", show_default=False)],
    name: Annotated[str, typer.Option(help="Name in the store; the next version of it is made.", show_default=False)],
    convert_bin: Annotated[
        bool, typer.Option("--convert-bin", help="Convert a pytorch_model.bin, in a process that can do nothing else.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Import a model folder as a durable job, and watch it.

    Example: ondol models import ./multilingual-e5-small --name multilingual-e5-small
    """
    with open_client(ctx) as client:
        job = client.models.import_(folder, name, convert_bin=convert_bin)
        code = watch(job, as_json=as_json)
        if code == 0 and not as_json:
            print(f"{job.result().model or name} is imported")
    return code


def _shown(value: object) -> object:
    """Nested JSON as text for people: versions by id, the rest as names and values."""
    if isinstance(value, list):
        return ", ".join(str(item.get("id", item) if isinstance(item, dict) else item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_inner(item)}" for name, item in value.items())
    return value


def _inner(value: object) -> object:
    if not isinstance(value, dict):
        return value
    plain = (f"{name} {item}" for name, item in value.items() if not isinstance(item, dict))
    return "(" + ", ".join(plain) + ")"
