"""`ondol db`: bring the database's schema up to date, or say where it stands."""

from __future__ import annotations

import typer

from ondol.cli.database_url import existing_database_url, new_database_url
from ondol.cli.options import AsJson
from ondol.cli.output import print_json

app = typer.Typer(help="The database (on the server's machine).", no_args_is_help=True)


@app.command("upgrade")
def upgrade(as_json: AsJson = False) -> None:
    """Bring the schema of the database that the settings name up to date. `ondol up` does this itself.

    Example: ONDOL_DATABASE_URL=postgresql+psycopg://ondol@db/ondol ondol db upgrade
    """
    from ondol.control import administration

    url = new_database_url()
    administration.upgrade_database(url)
    _print_revision(administration.current_revision(url), as_json=as_json)


@app.command("current")
def current(as_json: AsJson = False) -> None:
    """Print the schema revision that the database has.

    Example: ondol db current
    """
    from ondol.control import administration

    _print_revision(administration.current_revision(existing_database_url()), as_json=as_json)


def _print_revision(revision: str | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"revision": revision})
    else:
        print(revision or "no schema yet; run `ondol db upgrade`")
