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
    """How vectors are written."""

    JSON = "json"
    NDJSON = "ndjson"
    NPY = "npy"
