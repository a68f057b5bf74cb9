"""`ondol embed`: texts from the command line, a file or standard input, to vectors."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ondol.cli import completion
from ondol.cli.bulk import Columns, IdColumn, TextColumn, check_output, file_request, is_table, run_table, run_watched
from ondol.cli.connection import open_client
from ondol.cli.options import LINES, AsJson, Format, Output, ResultFormat, format_for
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
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    output_format: Format = None,
    output: Output = None,
    as_job: Annotated[bool, typer.Option("--job", help="Run as a durable job even if it is small.")] = False,
    prompt_name: Annotated[str | None, typer.Option(help="The model's prompt to use.", show_default=False)] = None,
    prompt: Annotated[str | None, typer.Option(help="Text put before every text.", show_default=False)] = None,
    dimensions: Annotated[int | None, typer.Option(min=1, help="Cut vectors to this.", show_default=False)] = None,
    truncate: Annotated[str | None, typer.Option(help="right, left or error.", show_default=False)] = None,
    as_json: AsJson = False,
) -> int:
    """Embed texts. Many texts, and files with columns, become one durable job, which Ctrl-C cancels.

    Example: ondol embed "물이 너무 뜨거워요" --model multilingual-e5-small --prompt-name query

    Example: ondol embed --file reviews.csv --text-column review --id-column id --output vectors.parquet
    """
    options: dict[str, Any] = {
        "prompt_name": prompt_name,
        "prompt": prompt,
        "dimensions": dimensions,
        "truncate": truncate,
    }
    wanted = ResultFormat.JSON if as_json else format_for(output_format, output, default=ResultFormat.JSON)
    check_output(output, wanted, by_replacing=False)
    columns = Columns(text_column, id_column)
    request = file_request("embedding", model, options, columns)
    if not texts and file is not None and is_table(file, columns):
        with open_client(ctx) as client:
            return run_table(client, request, file, output, wanted)
    chosen = read_texts(texts or [], file, to="embed")
    with open_client(ctx) as client:
        if wanted is ResultFormat.PARQUET:
            return run_watched(client, replace(request, input=chosen), output, wanted)
        outcome = client.embed(
            chosen,
            model=model,
            errors="return",
            progress=len(chosen) > 1 and (as_job or sys.stderr.isatty()),
            as_job=as_job,
            **options,
        )
    _write(outcome, model, wanted, output)
    return report_errors(outcome.errors)


def _write(outcome: PartialVectors, model: str, output_format: ResultFormat, output: Path | None) -> None:
    if output_format is ResultFormat.NPY:
        write_bytes(npy_bytes(outcome.vectors), output)
        return
    items = [_item(outcome, index) for index in range(len(outcome.vectors))]
    if output_format in LINES:
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
