"""`ondol keys`: API keys, made and revoked directly in the database that the settings name."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from ondol.cli.database_url import existing_database_url, new_database_url
from ondol.cli.options import AsJson
from ondol.cli.output import local_time, print_json, print_table

app = typer.Typer(help="API keys (on the server's machine).", no_args_is_help=True)


@app.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="What the key is for.")] = "default",
    project: Annotated[str, typer.Option(help="Project that the key belongs to; made if it is new.")] = "default",
    is_admin: Annotated[bool, typer.Option("--admin", help="The key may also administrate.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once: only its digest is kept. From the first key on, requests need one.

    Example: export ONDOL_API_KEY=$(ondol keys create --name laptop)
    """
    from ondol.control import administration

    url = new_database_url()
    administration.upgrade_database(url)  # the first key may be made before anything was started
    key = administration.create_key(url, project=project, name=name, is_admin=is_admin)
    if as_json:
        print_json({"key": key, "name": name, "project": project, "is_admin": is_admin})
    else:
        print(key)


@app.command("ls")
def list_keys(as_json: AsJson = False) -> None:
    """List keys, without the secrets.

    Example: ondol keys ls
    """
    from ondol.control import administration

    keys = administration.list_keys(existing_database_url())
    if as_json:
        names = ("id", "name", "project", "is_admin", "created_at", "revoked_at")
        print_json({"object": "list", "data": [{name: getattr(key, name) for name in names} for key in keys]})
        return
    print_table(
        ("KEY", "NAME", "PROJECT", "ADMIN", "CREATED", "REVOKED"),
        [
            (
                key.id,
                key.name,
                key.project,
                "yes" if key.is_admin else None,
                _time(key.created_at),
                _time(key.revoked_at),
            )
            for key in keys
        ],
    )


@app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The key's id, key_…", show_default=False, metavar="KEY")],
    as_json: AsJson = False,
) -> None:
    """Revoke a key for good.

    Example: ondol keys revoke key_01k9zv6t0m3x5r7c2b8d4f6g1h
    """
    from ondol.control import administration

    administration.revoke_key(existing_database_url(), key_id)
    if as_json:
        print_json({"id": key_id, "revoked": True})
    else:
        print(f"{key_id} is revoked")


def _time(seconds: float | None) -> str | None:
    return local_time(None if seconds is None else datetime.fromtimestamp(seconds, UTC))
