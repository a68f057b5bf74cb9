"""`ondol fine-tune`: a file of labelled texts to a new version of a model."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from ondol.cli import completion, exits
from ondol.cli.connection import open_client
from ondol.cli.options import AsJson
from ondol.cli.output import print_json, print_json_line
from ondol.cli.watching import watch
from ondol.client.fine_tune_flow import SHORT_NAMES
from ondol.client.sync_jobs import Job
from ondol.contract.errors import InvalidPayload
from ondol.contract.fine_tune import CONFIG_OVERRIDES, Columns, EarlyStopping, FineTuneOptions, Hyperparameters

_GROUPS: dict[str, frozenset[str] | None] = {
    "columns": frozenset(Columns.model_fields),
    "early_stopping": frozenset(EarlyStopping.model_fields),
    "hyperparameters": frozenset(Hyperparameters.model_fields),
    "config": CONFIG_OVERRIDES,
    "class_weights": None,
}
"""Options with parts of their own (`early_stopping.patience`) and the names of these; None: the data decide."""
_NAMES = frozenset({*FineTuneOptions.model_fields, *Hyperparameters.model_fields, *SHORT_NAMES})

Name = Annotated[str, typer.Option("--name", "-n", help="Name of the model to publish.", show_default=False)]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="The base: name, name:3 or name@alias",
        show_default=False,
        autocompletion=completion.models,
    ),
]
Data = Annotated[
    str,
    typer.Argument(
        help="CSV, TSV, JSONL or Parquet file, or the id of an uploaded one.", show_default=False, metavar="DATA"
    ),
]
Validation = Annotated[
    str | None, typer.Option(help="File of validation rows; else a tenth is held out.", show_default=False)
]
MaxLength = Annotated[
    int | None, typer.Option(help="Tokens a text is cut to; the base's own or 512 by default.", show_default=False)
]
LearningRate = Annotated[
    float | None, typer.Option(help="2e-5 by default, 1e-3 with a frozen backbone.", show_default=False)
]
Webhook = Annotated[
    str | None, typer.Option("--webhook", help="URL that is told how the job ended.", metavar="URL", show_default=False)
]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any option or hyperparameter, as weight_decay=0.1 or early_stopping.patience=2; may be repeated.",
        show_default=False,
    ),
]


class Task(StrEnum):
    """What is trained."""

    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"


class Backbone(StrEnum):
    """Which weights below the head are trained."""

    FULL = "full"
    FROZEN = "frozen"


class Head(StrEnum):
    """What turns the base's states into labels."""

    LINEAR = "linear"


def fine_tune(
    ctx: typer.Context,
    data: Data,
    model: Model,
    name: Name,
    task: Annotated[
        Task | None, typer.Option(help="What to train; by the file's columns by default.", show_default=False)
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the texts.", show_default=False)] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the labels.", show_default=False)] = None,
    validation: Validation = None,
    head: Annotated[Head | None, typer.Option(help="The head; linear by default.", show_default=False)] = None,
    backbone: Annotated[
        Backbone | None,
        typer.Option(help="Train all weights, or the head alone; full by default.", show_default=False),
    ] = None,
    freeze_word_embeddings: Annotated[
        bool, typer.Option("--freeze-word-embeddings", help="Leave the word embeddings as they are.")
    ] = False,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the data; 3 by default.", show_default=False)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step; 16 by default.", show_default=False)] = None,
    learning_rate: LearningRate = None,
    seed: Annotated[int | None, typer.Option(help="42 by default.", show_default=False)] = None,
    max_length: MaxLength = None,
    settings: Setting = None,
    alias: Annotated[str | None, typer.Option(help="Alias to move to the new version.", show_default=False)] = None,
    webhook: Webhook = None,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check the files, train nothing.")] = False,
    is_watched: Annotated[bool, typer.Option("--watch", "-w", help="Show how it goes until it ends.")] = False,
    as_json: AsJson = False,
) -> int:
    """Fine-tune a model on labelled texts and publish a version of NAME. Ctrl-C ends the watching, not the job.

    Example: ondol fine-tune reviews.csv --model all-minilm-l6-v2 --name sentiment --alias production --watch
    """
    flags = {
        "task": task,
        "text_column": text_column,
        "label_column": label_column,
        "head": head,
        "backbone": backbone,
        "freeze_word_embeddings": freeze_word_embeddings or None,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "max_length": max_length,
        "alias": alias,
        "validate_only": validate_only or None,
    }
    options = with_settings(flags, settings or [])
    with open_client(ctx) as client:
        job = client.fine_tune(data, model=model, name=name, validation=validation, webhook=webhook, **options)
        return _report(job, is_watched=is_watched, as_json=as_json)


def with_settings(flags: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """The flags that were given and what `--set` adds; InvalidPayload for an unknown name, or one given twice."""
    options = {name: value for name, value in flags.items() if value is not None}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator:
            raise InvalidPayload(f"--set takes NAME=VALUE, as in --set weight_decay=0.1; not {setting[:80]!r}")
        _check_name(name)
        if name in options:
            raise InvalidPayload(f"{name} is given twice")
        options[name] = _value(text)
    return options


def _report(job: Job, *, is_watched: bool, as_json: bool) -> int:
    if is_watched:
        if as_json:
            print_json_line(job.raw)
        else:
            sys.stderr.write(f"{job.id}\n")
        return watch(job, as_json=as_json)
    if as_json:
        print_json(job.raw)
    else:
        print(job.id, flush=True)
        sys.stderr.write(f"watch it with `ondol jobs watch {job.id}`\n")
    return exits.DONE


def _value(text: str) -> Any:
    """JSON where the text is some, else the text itself."""
    try:
        return json.loads(text, parse_constant=str)
    except ValueError:
        return text


def _check_name(name: str) -> None:
    """Return if there is such an option, hyperparameter or part of an option; InvalidPayload names what is alike."""
    group, separator, part = name.partition(".")
    if not separator:
        _check_known(name, _NAMES, "fine-tune option or hyperparameter")
        return
    _check_known(group, frozenset(_GROUPS), "fine-tune option with parts")
    parts = _GROUPS[group]
    if parts is not None:
        _check_known(part, parts, f"part of {group}")


def _check_known(name: str, known: frozenset[str], what: str) -> None:
    if name in known:
        return
    alike = difflib.get_close_matches(name, sorted(known), n=3)
    advice = f"did you mean {' or '.join(alike)}?" if alike else f"there are {', '.join(sorted(known))}"
    raise InvalidPayload(f"there is no {what} {name[:80]!r}; {advice}")
