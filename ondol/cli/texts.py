"""Texts of a command, from its arguments, a file or standard input, and the errors of those that failed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ondol.cli import exits
from ondol.client.errors import ItemError
from ondol.contract.errors import InvalidPayload

_MOST_LINES = 20
STDIN = "-"
"""Names standard input."""

Texts = Annotated[
    list[str] | None, typer.Argument(help="Texts, or - for standard input.", show_default=False, metavar="TEXT")
]
File = Annotated[
    Path | None,
    typer.Option(
        "--file", "-f", help="One text a line, or .csv, .tsv, .jsonl, .json, .parquet; - is stdin.", show_default=False
    ),
]


def read_texts(texts: list[str], file: Path | None, *, to: str) -> list[str]:
    """The texts given, or those of the file, one a line; InvalidPayload says what to give. `to`: the command."""
    if file is not None and texts:
        raise InvalidPayload("give texts or --file, not both")
    if str(file) == STDIN or texts == [STDIN]:
        return _lines(sys.stdin.buffer.read(), "standard input")
    if file is not None:
        return _lines(_read(file), str(file))
    if not texts:
        raise InvalidPayload(
            f'nothing to {to}; give texts, --file FILE, or - for standard input, as in: ondol {to} "a"'
        )
    return texts


def report_errors(errors: Mapping[int, ItemError]) -> int:
    """The exit code, after a line on stderr for each input that failed, of very many for the first ones."""
    for index, error in sorted(errors.items())[:_MOST_LINES]:
        exits.fail(f"input[{index}]: {error.code}: {error.message}", exits.JOB_FAILED)
    if len(errors) > _MOST_LINES:
        exits.fail(f"{len(errors) - _MOST_LINES} other inputs failed, too", exits.JOB_FAILED)
    return exits.JOB_FAILED if errors else exits.DONE


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
