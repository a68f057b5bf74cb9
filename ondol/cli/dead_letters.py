"""`ondol dead-letters`: messages that nobody understood, directly in the Redis of the settings."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ondol.cli.options import AsJson
from ondol.cli.output import print_json, print_pairs, print_table
from ondol.contract.errors import InvalidPayload
from ondol.settings import CommonSettings, load_settings

if TYPE_CHECKING:
    from ondol.control.letters import DeadLetter

app = typer.Typer(help="Messages that nobody understood (on the server's machine).", no_args_is_help=True)

Ids = Annotated[list[str], typer.Argument(metavar="ID", help="Ids, as `ls` prints them.", show_default=False)]


@app.command("ls")
def list_letters(as_json: AsJson = False) -> None:
    """List dead letters, newest first, without what they hold.

    Example: ondol dead-letters ls
    """
    from ondol.control import letters

    found = letters.list_letters(_redis_url())
    if as_json:
        print_json({"object": "list", "data": [_shown(letter) for letter in found]})
        return
    print_table(
        ("ID", "PUT ASIDE", "QUEUE", "CAUSE", "BYTES", "CAN BE PUT BACK"),
        [(e.id, _time(e), e.queue, e.cause, f"{e.size_bytes:,}", "yes" if e.may_be_requeued else "no") for e in found],
    )


@app.command("show")
def show(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="As `ls` prints it.", show_default=False)],
    with_body: Annotated[
        bool, typer.Option("--body", help="Write its bytes to standard output, and nothing else. They may hold texts.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what is known of one dead letter, or what it holds.

    Example: ondol dead-letters show 1790000000000-0 --body > letter.json
    """
    from ondol.control import letters

    found = letters.get_letter(_redis_url(), letter_id)
    if with_body:
        sys.stdout.buffer.write(found.body)
        sys.stdout.buffer.flush()
    elif as_json:
        print_json(_shown(found))
    else:
        print_pairs([(name, str(value)) for name, value in _shown(found).items()])


@app.command("requeue")
def requeue(ids: Ids, as_json: AsJson = False) -> None:
    """Put dead letters back into the queues that they came from, once somebody is there who understands them.

    Example: ondol dead-letters requeue 1790000000000-0
    """
    from ondol.control import letters

    found = letters.requeue_letters(_redis_url(), ids)
    if as_json:
        print_json({"object": "list", "data": [_shown(letter) for letter in found]})
        return
    for letter in found:
        typer.echo(f"{letter.id} is in {letter.queue} again")


@app.command("drop")
def drop(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="As `ls` prints them.")] = None,
    are_all: Annotated[bool, typer.Option("--all", help="All that there are.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete dead letters for good.

    Example: ondol dead-letters drop --all
    """
    from ondol.control import letters

    if bool(ids) == are_all:
        raise InvalidPayload("give ids, or --all")
    num = letters.drop_letters(_redis_url(), None if are_all else ids)
    if as_json:
        print_json({"object": "dead_letter.dropped", "dropped": num})
    else:
        typer.echo(f"{num} dropped")


def _redis_url() -> str:
    return load_settings(CommonSettings).resolved_redis_url()


def _shown(letter: DeadLetter) -> dict[str, Any]:
    return {
        "object": "dead_letter",
        "id": letter.id,
        "put_aside_at": letter.put_aside_at,
        "queue": letter.queue,
        "cause": letter.cause,
        "error": letter.error,
        "by": letter.by,
        "bytes": letter.size_bytes,
        "sha256": letter.sha256,
        "may_be_requeued": letter.may_be_requeued,
    }


def _time(letter: DeadLetter) -> str:
    return datetime.fromtimestamp(letter.put_aside_at).astimezone().isoformat(sep=" ", timespec="seconds")
