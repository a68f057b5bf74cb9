"""`ondol db`: the schema, backups and their way back, and the move to another database."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ondol.cli.database_url import existing_database_url, new_database_url
from ondol.cli.options import AsJson
from ondol.cli.output import print_json, print_pairs
from ondol.settings import CommonSettings, load_settings

if TYPE_CHECKING:
    from ondol.control.moving import TableCopied

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


@app.command("backup")
def back_up(
    file: Annotated[Path, typer.Argument(help="Where the backup goes.")],
    is_forced: Annotated[bool, typer.Option("--force", help="Overwrite a file of that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a backup of the database, of one moment, while everything goes on. The store is backed up after it.

    SQLite: a database file of its own. PostgreSQL: what pg_dump writes, which has to be on PATH.

    Example: ondol db backup /backup/ondol-monday.db
    """
    from ondol.control import backup

    done = backup.back_up(existing_database_url(), file, overwrite=is_forced)
    shown = {"file": str(done.file), "bytes": done.size_bytes, "revision": done.revision, "took_s": done.took_s}
    _print_facts(shown, as_json=as_json)


@app.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(help="What `ondol db backup` wrote.")],
    is_forced: Annotated[
        bool, typer.Option("--force", help="Also over a database that holds something, or that somebody works with.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the database what it was when the backup was made. Stop everything first.

    Jobs that ran then wait again. The schema is brought up to date. Whatever goes wrong leaves the database as it is.

    Example: ondol db restore /backup/ondol-monday.db
    """
    from ondol.control import restoring

    done = restoring.restore(new_database_url(), file, force=is_forced)
    shown = {"restored_from": str(file), "revision": done.revision, "jobs_that_wait_again": done.num_handed_back}
    _print_facts(shown, as_json=as_json)


@app.command("copy")
def copy_to(
    target: Annotated[
        str, typer.Argument(metavar="TARGET_URL", help="An empty database: sqlite or postgresql+psycopg.")
    ],
    as_json: AsJson = False,
) -> None:
    """Move everything to another database, of either kind, while clients go on; then start Ondol on the new one.

    Writes wait during the copy and are refused after it: this database takes none any more. Clients try again, and
    reach the new one when ONDOL_DATABASE_URL names it and everything is started anew.

    Example: ondol db copy postgresql+psycopg://ondol@db/ondol
    """
    from ondol.control import moving

    done = moving.move_database(existing_database_url(), _database_url(target), told=None if as_json else _print_table)
    tables = {table.name: {"rows": table.num_rows, "sha256": table.sha256} for table in done.tables}
    if as_json:
        print_json({"rows": done.num_rows, "jobs_that_wait_again": done.num_handed_back, "tables": tables})
        return
    print(f"moved {done.num_rows} rows in {done.took_s:.1f} s; {done.num_handed_back} jobs that ran wait again")
    print("now set ONDOL_DATABASE_URL to the new database and start everything anew")


@app.command("reopen")
def reopen(as_json: AsJson = False) -> None:
    """Let a database that `ondol db copy` moved take writes again. Only if nobody has worked with the copy.

    Example: ondol db reopen
    """
    from ondol.control import moving

    is_open = moving.reopen_database(existing_database_url())
    if as_json:
        print_json({"reopened": is_open})
    else:
        print("the database takes writes again" if is_open else "the database was not moved; nothing is changed")


def _database_url(text: str) -> str:
    """The target, checked as the setting is, with the password that is set apart."""
    return load_settings(CommonSettings, database_url=text).resolved_database_url()


def _print_table(table: TableCopied) -> None:
    if table.num_rows:
        print(f"{table.name}: {table.num_rows} rows, sha256 {table.sha256[:16]}")


def _print_facts(facts: Mapping[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        print_pairs(facts.items())


def _print_revision(revision: str | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"revision": revision})
    else:
        print(revision or "no schema yet; run `ondol db upgrade`")
