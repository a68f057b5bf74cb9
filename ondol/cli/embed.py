"""`ondol embed`: texts from the command line, a file or standard input, to vectors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ondol.cli import completion
from ondol.cli.connection import open_client
from ondol.cli.options import AsJson, Output, ResultFormat
from ondol.cli.output import npy_bytes, write_bytes, write_text
from ondol.cli.texts import File, Texts, read_texts, report_errors
from ondol.client.embed_flow import PartialVectors


def embed(
    ctx: typer.Context,
    texts: Texts = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="name, name:3 or name@alias", autocompletion=completion.models)
    ] = "all-minilm-l6-v2",
    file: File = None,
    output_format: Annotated[ResultFormat, typer.Option("--format", help="How to write vectors.")] = ResultFormat.JSON,
    output: Output = None,
    as_job: Annotated[bool, typer.Option("--job", help="Run as a durable job even if it is small.")] = False,
    prompt_name: Annotated[str | None, typer.Option(help="The model's prompt to use.", show_default=False)] = None,
    prompt: Annotated[str | None, typer.Option(help="Text put before every text.", show_default=False)] = None,
    dimensions: Annotated[int | None, typer.Option(min=1, help="Cut vectors to this.", show_default=False)] = None,
    truncate: Annotated[str | None, typer.Option(help="right, left or error.", show_default=False)] = None,
    as_json: AsJson = False,
) -> int:
    """Embed texts. Many texts become durable jobs by themselves; lines of a file that are empty are refused.

    Example: ondol embed "물이 너무 뜨거워요" --model multilingual-e5-small --prompt-name query
    """
    chosen = read_texts(texts or [], file, to="embed")
    with open_client(ctx) as client:
        outcome = client.embed(
            chosen,
            model=model,
            errors="return",
            progress=len(chosen) > 1 and (as_job or sys.stderr.isatty()),
            as_job=as_job,
            prompt_name=prompt_name,
            prompt=prompt,
            dimensions=dimensions,
            truncate=truncate,
        )
    _write(outcome, model, ResultFormat.JSON if as_json else output_format, output)
    return report_errors(outcome.errors)


def _write(outcome: PartialVectors, model: str, output_format: ResultFormat, output: Path | None) -> None:
    if output_format is ResultFormat.NPY:
        write_bytes(npy_bytes(outcome.vectors), output)
        return
    items = [_item(outcome, index) for index in range(len(outcome.vectors))]
    if output_format is ResultFormat.NDJSON:
        write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), output)
    else:
        document = {"object": "list", "data": items, "model": model}
        write_text(json.dumps(document, ensure_ascii=False) + "\n", output)


def _item(outcome: PartialVectors, index: int) -> dict[str, object]:
    error = outcome.errors.get(index)
    if error is not None:
        return {"index": index, "error": {"code": error.code, "message": error.message}}
    # The shortest decimals that read back as the same float32, not the longer ones of their float64 value.
    return {"index": index, "output": [float(str(value)) for value in outcome.vectors[index]]}
