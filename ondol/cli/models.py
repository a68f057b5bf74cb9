"""`ondol models`: list, show, import, export, aliases, delete, collection of what nothing needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ondol.cli import completion, exits
from ondol.cli.connection import open_client
from ondol.cli.database_url import existing_database_url
from ondol.cli.options import AsJson
from ondol.cli.output import local_time, print_json, print_pairs, print_table
from ondol.cli.watching import watch
from ondol.client.model_flows import AliasInfo, AliasMove, Expected
from ondol.client.sync_client import Ondol
from ondol.contract.errors import InvalidPayload
from ondol.contract.model_ref import parse_model_ref

app = typer.Typer(help="Models and their versions.", no_args_is_help=True)

_NO_ALIAS = "none"
_WRONG_STORE = ("invalid_payload", "bad_store_url")

Reference = Annotated[
    str,
    typer.Argument(
        help="name, name:3 or name@alias", show_default=False, metavar="MODEL", autocompletion=completion.models
    ),
]


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
    ref: Reference,
    card: Annotated[bool, typer.Option("--card", help="Print the model card instead, Markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one model: its labels, metrics, where it comes from, its aliases and versions.

    Example: ondol models show all-minilm-l6-v2
    """
    with open_client(ctx) as client:
        if card:
            _print_card(ref, client.models.card(ref), as_json=as_json)
            return
        model = client.models.get(ref)
    if as_json:
        print_json(model.raw)
    else:
        shown = {name: value for name, value in model.raw.items() if value not in ([], {}, None)}
        print_pairs((name, _shown(value)) for name, value in shown.items() if name not in ("object", "created"))


@app.command("import")
def import_model(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Model folder on the worker's machine.", show_default=False)],
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


@app.command("alias")
def alias_model(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="The model.", show_default=False)],
    alias: Annotated[str | None, typer.Argument(help="The alias; without it all are listed.")] = None,
    version: Annotated[str | None, typer.Argument(help="3, or name:3", show_default=False)] = None,
    expected: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Only if it points to this version now, or 'none': to no version.", show_default=False
        ),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the history.", show_default=False)] = "",
    delete: Annotated[bool, typer.Option("--delete", help="Delete the alias; its history stays.")] = False,
    as_json: AsJson = False,
) -> None:
    """Move an alias to a version; without a version, show where aliases point and pointed.

    Example: ondol models alias sentiment production 3 --expected 2 --reason "better on the new data"
    """
    if delete and (alias is None or version is not None):
        raise InvalidPayload("--delete takes a model and an alias, and no version")
    with open_client(ctx) as client:
        if delete and alias is not None:
            number = None if expected is None else _number(name, expected)
            client.models.delete_alias(name, alias, expected=number, reason=reason)
            _print_outcome({"id": f"{name}@{alias}", "deleted": True}, f"{name}@{alias} is deleted", as_json=as_json)
        elif alias is None or version is None:
            _print_aliases(client, name, alias, as_json=as_json)
        else:
            wanted = _number(name, version)
            moved = client.models.set_alias(name, alias, wanted, expected=_expected(name, expected), reason=reason)
            _print_outcome(moved.raw, f"{name}@{alias} points to {moved.version}", as_json=as_json)


@app.command("export")
def export_model(
    ctx: typer.Context,
    ref: Reference,
    folder: Annotated[Path, typer.Argument(help="Local folder to make.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Bring a version to a local folder, every file compared with its digest; `from_pretrained` takes it.

    Example: ondol models export sentiment@production ./sentiment
    """
    with open_client(ctx) as client:
        exported = client.models.export(ref, folder)
    _print_outcome({"model": exported, "folder": str(folder)}, f"{exported} is in {folder}", as_json=as_json)


@app.command("rm")
def remove_version(ctx: typer.Context, ref: Reference, as_json: AsJson = False) -> None:
    """Delete one version that no alias points to.

    Example: ondol models rm sentiment:2
    """
    with open_client(ctx) as client:
        client.models.delete(ref)
    _print_outcome({"id": ref, "deleted": True}, f"{ref} is deleted", as_json=as_json)


@app.command("gc")
def collect_garbage(
    grace_h: Annotated[
        float, typer.Option(min=1, help="Hours that a file must have been of no use; longer than any publish takes.")
    ] = 48.0,
    is_confirmed: Annotated[bool, typer.Option("--yes", help="Delete; without it only say what would go.")] = False,
    with_unknown: Annotated[
        bool, typer.Option("--unknown", help="Also versions that the database never knew.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Delete files of the store that nothing needs: of deleted versions, and of jobs that are gone. On the server.

    Example: ondol models gc --grace-h 48 --yes
    """
    existing_database_url()
    options = [name for name, is_given in (("--yes", is_confirmed), ("--unknown", with_unknown)) if is_given]
    command = [sys.executable, "-m", "models_store.collection", "--grace-h", str(grace_h), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)  # the store's code is the server's, not ours
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return exits.fail("the collection broke off; what it had deleted was of no use", exits.JOB_FAILED)
    if "error" in found:
        is_wrong_use = found["error"]["code"] in _WRONG_STORE
        return exits.fail(found["error"]["message"], exits.WRONG_USE if is_wrong_use else exits.JOB_FAILED)
    _print_outcome(found, _collected(found), as_json=as_json)
    return exits.DONE


def _collected(found: dict[str, Any]) -> str:
    what = (
        f"{len(found['manifests'])} versions' manifests, {found['num_blobs']} blobs of"
        f" {found['blob_bytes'] / 1e6:,.1f} MB, folders of {len(found['job_folders'])} jobs that are gone"
    )
    return f"would delete {what}; `ondol models gc --yes` does" if found["is_dry"] else f"deleted {what}"


def _expected(name: str, given: str | None) -> Expected:
    if given is None:
        return "any"
    return None if given == _NO_ALIAS else _number(name, given)


def _number(name: str, text: str) -> int:
    """The version number in `3` or `name:3`; InvalidPayload for anything else, or another model's version."""
    ref = parse_model_ref(text if ":" in text else f"{name}:{text}", param="version")
    if ref.number is None or ref.name != name:
        raise InvalidPayload(f"{text!r} is not a version of {name}; give its number", param="version")
    return ref.number


def _print_aliases(client: Ondol, name: str, alias: str | None, *, as_json: bool) -> None:
    found = [one for one in client.models.aliases(name) if alias in (None, one.name)]
    moves = client.models.alias_history(name, alias)
    if as_json:
        print_json({"aliases": [one.raw for one in found], "history": [move.raw for move in moves]})
        return
    print_table(("ALIAS", "VERSION", "SINCE"), [_alias_row(one) for one in found])
    print()
    print_table(("MOVED", "ALIAS", "FROM", "TO", "REASON"), [_move_row(move) for move in moves])


def _alias_row(alias: AliasInfo) -> tuple[object, ...]:
    return alias.name, alias.version, local_time(alias.updated_at)


def _move_row(move: AliasMove) -> tuple[object, ...]:
    return local_time(move.created_at), move.alias, move.previous, move.version or "deleted", move.reason


def _print_card(ref: str, card: str | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"model": ref, "card": card})
    else:
        print(card if card is not None else f"{ref} has no model card")


def _print_outcome(raw: dict[str, object], line: str, *, as_json: bool) -> None:
    if as_json:
        print_json(raw)
    else:
        print(line)


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
