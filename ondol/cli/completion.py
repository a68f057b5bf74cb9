"""What a shell completes: ids of jobs and files, and model references, asked from the server; nothing if it is away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import typer

from ondol.client.records import ModelInfo
from ondol.client.sync_client import Ondol
from ondol.contract.errors import OndolError

_LIMIT_S = 2.0
_MOST_SHOWN = 100
Choice = tuple[str, str]
"""What is completed, and a word about it."""


def jobs(ctx: typer.Context, incomplete: str) -> list[Choice]:
    """Ids of the newest jobs."""
    return _ask(
        ctx, incomplete, lambda client: ((j.id, f"{j.kind} {j.status}") for j in client.jobs.list(limit=_MOST_SHOWN))
    )


def files(ctx: typer.Context, incomplete: str) -> list[Choice]:
    """Ids of the newest files."""
    return _ask(ctx, incomplete, lambda client: ((f.id, f.filename) for f in client.files.list(limit=_MOST_SHOWN)))


def models(ctx: typer.Context, incomplete: str) -> list[Choice]:
    """Names of models, with their aliases and versions."""
    return _ask(
        ctx, incomplete, lambda client: (choice for model in client.models.list() for choice in _references(model))
    )


def _references(model: ModelInfo) -> Iterator[Choice]:
    task = str(model.raw.get("task") or "")
    yield model.id, task
    for alias, version in (model.raw.get("aliases") or {}).items():
        yield f"{model.id.partition(':')[0]}@{alias}", version
    for version in model.raw.get("versions") or ():
        yield version["id"], task


def _ask(ctx: typer.Context, incomplete: str, found_by: Callable[[Ondol], Iterator[Choice]]) -> list[Choice]:
    """Each choice once. A shell that completes shows no error, so that a missing server is an empty list."""
    try:
        with Ondol(ctx.find_root().params.get("url"), timeout=_LIMIT_S, max_retries=0) as client:
            fitting = {text: about for text, about in found_by(client) if text.startswith(incomplete)}
    except OndolError:
        return []
    return list(islice(fitting.items(), _MOST_SHOWN))
