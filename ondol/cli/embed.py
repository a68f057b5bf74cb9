"""`ondol embed`: texts from the command line, a file or standard input, to vectors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ondol.cli import exits
from ondol.cli.connection import open_client
from ondol.cli.options import AsJson, Output, ResultFormat
from ondol.cli.output import npy_bytes, write_bytes, write_text
from ondol.client.embed_flow import PartialVectors
from ondol.contract.errors import InvalidPayload

_STDIN = "-"


def embed(
    ctx: typer.Context,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts, or - for standard input.", show_default=False, metavar="TEXT")
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="name, name:3 or name@alias")] = "all-minilm-l6-v2",
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="UTF-8 file, one text a line; - is stdin.", show_default=False)
    ] = None,
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
    chosen = _read_texts(texts or [], file)
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
    return _report_errors(outcome)


def _read_texts(texts: list[str], file: Path | None) -> list[str]:
    if file is not None and texts:
        raise InvalidPayload("give texts or --file, not both")
    if str(file) == _STDIN or texts == [_STDIN]:
        return _lines(sys.stdin.buffer.read(), "standard input")
    if file is not None:
        return _lines(_read(file), str(file))
    if not texts:
        raise InvalidPayload(
            'nothing to embed; give texts, --file FILE, or - for standard input, as in: ondol embed "a"'
        )
    return texts


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as exc:
        raise InvalidPayload(f"cannot read {file}: {exc.strerror}", param="--file") from exc


def _lines(content: bytes, source: str) -> list[str]:
    try:
        # Only line feeds end a text: str.splitlines would also cut at U+2028 and its kin inside a text.
        lines = content.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as exc:
        raise InvalidPayload(f"{source} is not UTF-8 (byte {exc.start})") from exc
    return lines[:-1] if lines[-1] == "" else lines


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


def _report_errors(outcome: PartialVectors) -> int:
    for index, error in sorted(outcome.errors.items()):
        exits.fail(f"input[{index}]: {error.code}: {error.message}", exits.JOB_FAILED)
    return exits.JOB_FAILED if outcome.errors else exits.DONE
