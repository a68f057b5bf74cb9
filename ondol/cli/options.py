"""Options that many commands share, with one wording."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ondol.cli import completion

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, as the server sent it.")]
JobIdArgument = Annotated[
    str, typer.Argument(help="The job's id, job_…", show_default=False, metavar="JOB", autocompletion=completion.jobs)
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="File to write; standard output by default.", show_default=False)
]


class ResultFormat(StrEnum):
    """How results are written."""

    JSON = "json"
    NDJSON = "ndjson"
    JSONL = "jsonl"
    NPY = "npy"
    PARQUET = "parquet"


Format = Annotated[
    ResultFormat | None,
    typer.Option("--format", help="How to write the result; by default what the output's name ends in, else JSON."),
]
LINES = frozenset({ResultFormat.NDJSON, ResultFormat.JSONL})
"""Two names of one format."""
BINARY = frozenset({ResultFormat.NPY, ResultFormat.PARQUET})
"""Formats that no terminal shows."""


def format_for(asked: ResultFormat | None, output: Path | None, *, default: ResultFormat) -> ResultFormat:
    """The format asked for, else the one that the output's name ends in, else the default."""
    if asked is not None:
        return asked
    suffix = "" if output is None else output.suffix.lower().removeprefix(".")
    return ResultFormat(suffix) if suffix in set(ResultFormat) else default
