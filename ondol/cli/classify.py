"""`ondol classify` and `ondol tag`: texts from the command line, a file or standard input, to labels and entities."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ondol.cli import completion
from ondol.cli.bulk import Columns, IdColumn, PairColumn, TextColumn, file_request, is_table, run_table
from ondol.cli.connection import open_client
from ondol.cli.options import Output, ResultFormat, format_for
from ondol.cli.output import check_writable, print_table, write_text
from ondol.cli.texts import File, Texts, read_texts, report_errors
from ondol.client.labels import Entity, LabelScore, PartialResults

T = TypeVar("T")
Row = tuple[object, ...]

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="name, name:3 or name@alias", show_default=False, autocompletion=completion.models
    ),
]
AsJsonLines = Annotated[bool, typer.Option("--json", help="Print one line of JSON an input.")]
AsJob = Annotated[bool, typer.Option("--job", help="Run as a durable job even if it is small.")]
FileFormat = Annotated[
    ResultFormat | None,
    typer.Option(
        "--format",
        help="Of a file with columns: how to write the result; else it is always JSON lines.",
        show_default=False,
    ),
]
_MAX_SHOWN_CHARS = 80


class Function(StrEnum):
    """What turns logits into scores."""

    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"
    NONE = "none"


class Aggregation(StrEnum):
    """How tokens become entities."""

    NONE = "none"
    SIMPLE = "simple"
    FIRST = "first"
    AVERAGE = "average"
    MAX = "max"


def classify(
    ctx: typer.Context,
    model: Model,
    texts: Texts = None,
    file: File = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    id_column: IdColumn = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", min=1, help="Only so many labels a text.", show_default=False)
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Score from which a label is predicted.", show_default=False)
    ] = None,
    function: Annotated[
        Function | None, typer.Option(help="Applied to logits; the model's own by default.", show_default=False)
    ] = None,
    truncate: Annotated[str | None, typer.Option(help="right, left or error.", show_default=False)] = None,
    output_format: FileFormat = None,
    output: Output = None,
    as_job: AsJob = False,
    as_json: AsJsonLines = False,
) -> int:
    """Classify texts: labels with scores, best first. Many texts, and files with columns, become one durable job.

    Example: ondol classify "the floor stays warm all night" --model sentiment@production --top-k 1

    Example: ondol classify --file reviews.parquet --model sentiment --id-column id --output labels.jsonl
    """
    options: dict[str, Any] = {
        "top_k": top_k,
        "threshold": threshold,
        "function_to_apply": function.value if function else None,
        "truncate": truncate,
    }
    check_writable(output)
    columns = Columns(text_column, id_column, text_pair_column)
    if not texts and file is not None and is_table(file, columns):
        request = file_request("text-classification", model, options, columns)
        with open_client(ctx) as client:
            return run_table(client, request, file, output, _file_format(output_format, output))
    chosen = read_texts(texts or [], file, to="classify")
    with open_client(ctx) as client:
        outcome = client.classify(
            chosen,
            model=model,
            errors="return",
            progress=_shows_progress(chosen, as_job),
            as_job=as_job,
            **options,
        )
    if as_json or output is not None:
        write_text(_lines(outcome, _label_json), output)
    else:
        _print_labels(chosen, outcome)
    return report_errors(outcome.errors)


def tag(
    ctx: typer.Context,
    model: Model,
    texts: Texts = None,
    file: File = None,
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    aggregation: Annotated[Aggregation, typer.Option(help="How tokens become entities.")] = Aggregation.SIMPLE,
    stride: Annotated[
        int | None, typer.Option(min=0, help="Tokens that windows of a long text share.", show_default=False)
    ] = None,
    output_format: FileFormat = None,
    output: Output = None,
    as_job: AsJob = False,
    as_json: AsJsonLines = False,
) -> int:
    """Find the entities in texts, which are never cut. Many texts, and files with columns, become one durable job.

    Example: ondol tag "Ada Lovelace lived in London" --model entities

    Example: ondol tag --file letters.jsonl --model entities --text-column body --output entities.jsonl
    """
    options: dict[str, Any] = {"aggregation_strategy": aggregation.value, "stride": stride}
    check_writable(output)
    columns = Columns(text_column, id_column)
    if not texts and file is not None and is_table(file, columns):
        request = file_request("token-classification", model, options, columns)
        with open_client(ctx) as client:
            return run_table(client, request, file, output, _file_format(output_format, output))
    chosen = read_texts(texts or [], file, to="tag")
    with open_client(ctx) as client:
        outcome = client.tag(
            chosen,
            model=model,
            errors="return",
            progress=_shows_progress(chosen, as_job),
            as_job=as_job,
            **options,
        )
    if as_json or output is not None:
        is_grouped = aggregation is not Aggregation.NONE
        write_text(_lines(outcome, lambda entity: _entity_json(entity, is_grouped=is_grouped)), output)
    else:
        print_table(("TEXT", "ENTITY", "WORD", "START", "END", "SCORE"), _rows(chosen, outcome, _entity_row))
    return report_errors(outcome.errors)


def _file_format(asked: ResultFormat | None, output: Path | None) -> ResultFormat:
    return format_for(asked, output, default=ResultFormat.JSONL)


def _print_labels(texts: Sequence[str], outcome: PartialResults[list[LabelScore]]) -> None:
    columns = ["TEXT", "LABEL", "SCORE"]
    if any(item.predicted is not None for found in outcome.results for item in found or ()):
        columns.append("PREDICTED")
    print_table(columns, [row[: len(columns)] for row in _rows(texts, outcome, _label_row)])


def _shows_progress(texts: Sequence[str], as_job: bool) -> bool:
    return len(texts) > 1 and (as_job or sys.stderr.isatty())


def _rows(texts: Sequence[str], outcome: PartialResults[list[T]], row_of: Callable[[T], Row]) -> list[Row]:
    """One row a finding, the text before its first one; a text without any has a row of its own."""
    rows: list[Row] = []
    for index, found in enumerate(outcome.results):
        named = texts[index] if len(texts[index]) <= _MAX_SHOWN_CHARS else texts[index][: _MAX_SHOWN_CHARS - 1] + "…"
        if index in outcome.errors:
            rows.append((named, "failed"))
            continue
        shown = [row_of(item) for item in found or ()] or [("-",)]
        rows += [(named if place == 0 else None, *row) for place, row in enumerate(shown)]
    return rows


def _label_row(found: LabelScore) -> Row:
    predicted = None if found.predicted is None else "yes" if found.predicted else "no"
    return (found.label, f"{found.score:.4f}", predicted)


def _entity_row(found: Entity) -> Row:
    return (found.label, found.word, found.start, found.end, f"{found.score:.4f}")


def _label_json(found: LabelScore) -> dict[str, Any]:
    return {name: value for name, value in asdict(found).items() if value is not None}


def _entity_json(found: Entity, *, is_grouped: bool) -> dict[str, Any]:
    """The entity as the server wrote it."""
    shown = {name: value for name, value in asdict(found).items() if value is not None and name != "label"}
    return {"entity_group" if is_grouped else "entity": found.label, **shown}


def _lines(outcome: PartialResults[list[T]], item_of: Callable[[T], dict[str, Any]]) -> str:
    """One line of JSON an input, in input order."""
    lines = []
    for index, found in enumerate(outcome.results):
        error = outcome.errors.get(index)
        shown: dict[str, Any] = (
            {"error": {"code": error.code, "message": error.message}}
            if error is not None
            else {"output": [item_of(item) for item in found or ()]}
        )
        lines.append(json.dumps({"index": index, **shown}, ensure_ascii=False) + "\n")
    return "".join(lines)
