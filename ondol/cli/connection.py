"""The client that commands use: the address of `--url`, and few retries, so that a missing server is told at once."""

from __future__ import annotations

import typer

from ondol.client.sync_client import Ondol

_MAX_RETRIES = 2


def open_client(ctx: typer.Context) -> Ondol:
    """A client for the server that `ondol --url` or the environment names."""
    url = ctx.find_root().obj
    assert url is None or isinstance(url, str)
    return Ondol(url, max_retries=_MAX_RETRIES)
