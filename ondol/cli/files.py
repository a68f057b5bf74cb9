"""`ondol files`: put, list, get, remove."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ondol.cli import completion
from ondol.cli.connection import open_client
from ondol.cli.options import AsJson, Output
from ondol.cli.output import check_writable, local_time, print_json, print_table
from ondol.client.file_flows import DEFAULT_PURPOSE
from ondol.client.file_transfer import HashedSink
from ondol.contract.errors import InvalidPayload

app = typer.Typer(help="Files of texts and labels.", no_args_is_help=True)

FileArgument = Annotated[
    str,
    typer.Argument(help="The file's id, file_…", show_default=False, metavar="FILE", autocompletion=completion.files),
]


@app.command("put")
def put_file(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(help="The local file.", show_default=False)],
    purpose: Annotated[str, typer.Option(help="fine-tune, batch, evals, or user_data for any file.")] = DEFAULT_PURPOSE,
    expires_after_s: Annotated[
        int | None, typer.Option(help="Seconds after which the server forgets it; default: never.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a file, and print its id.

    Example: ondol files put reviews.csv
    """
    with open_client(ctx) as client:
        info = client.files.put(path, purpose, expires_after_s=expires_after_s)
    if as_json:
        print_json(info.raw)
    else:
        print(info.id)


@app.command("ls")
def list_files(
    ctx: typer.Context,
    purpose: Annotated[str | None, typer.Option(help="Only files of this purpose.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most files to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List files, newest first.

    Example: ondol files ls --purpose fine-tune
    """
    with open_client(ctx) as client:
        found = list(client.files.list(purpose=purpose, limit=limit))
    if as_json:
        print_json({"object": "list", "data": [info.raw for info in found]})
        return
    print_table(
        ("FILE", "NAME", "PURPOSE", "BYTES", "CREATED", "EXPIRES"),
        [
            (
                info.id,
                info.filename,
                info.purpose,
                f"{info.size_bytes:,}",
                local_time(info.created_at),
                local_time(info.expires_at),
            )
            for info in found
        ],
    )


@app.command("get")
def get_file(ctx: typer.Context, file_id: FileArgument, output: Output = None, as_json: AsJson = False) -> None:
    """Download a file, compared by SHA-256; JSON describes it, and is no download without --output.

    Example: ondol files get file_01k9zv6t0m3x5r7c2b8d4f6g1h --output reviews.csv
    """
    check_writable(output, by_replacing=True)
    with open_client(ctx) as client:
        if output is not None:
            info = client.files.download(file_id, output)
        elif as_json:
            info = client.files.get(file_id)
        elif sys.stdout.isatty():
            raise InvalidPayload("a file does not go to a terminal; name a file with --output or use a pipe")
        else:
            client.files.save(file_id, HashedSink(sys.stdout.buffer))
            return
    if as_json:
        print_json(info.raw)
    else:
        print(f"{output} holds {info.filename}, {info.size_bytes:,} bytes")


@app.command("rm")
def remove_file(ctx: typer.Context, file_id: FileArgument, as_json: AsJson = False) -> None:
    """Delete a file with its content.

    Example: ondol files rm file_01k9zv6t0m3x5r7c2b8d4f6g1h
    """
    with open_client(ctx) as client:
        client.files.delete(file_id)
    if as_json:
        print_json({"id": file_id, "deleted": True})
    else:
        print(f"{file_id} is deleted")
