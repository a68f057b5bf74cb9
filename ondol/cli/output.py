"""What commands print: tables for people, JSON for programs, files for results."""

from __future__ import annotations

import io
import json
import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ondol.client.file_transfer import local_path
from ondol.client.vectors import Vectors
from ondol.contract.errors import InvalidPayload

_PIPE_WIDTH = 200


def console() -> Console:
    """Standard output: as wide as the terminal, or wide enough for a table when it is a pipe."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False, markup=False)


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def print_json_line(value: object) -> None:
    """One line of JSON, at once, so that a reader sees it while the command still runs."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table for people; None is shown as nothing."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    console().print(table)


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values below each other, without the ones that are not there."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None and value != {}:
            table.add_row(name, Text(str(value)))
    console().print(table)


def print_text(line: str) -> None:
    """A line for people, folded between words on a terminal that is too narrow for it."""
    if sys.stdout.isatty():
        line = textwrap.fill(line, console().width, subsequent_indent="  ", break_long_words=False)
    print(line)


def check_writable(output: Path | None, *, by_replacing: bool = False) -> None:
    """Return if the file can be written, as far as that is seen beforehand; else InvalidPayload. None: standard output.

    `by_replacing`: a file beside it takes its name when all is written.
    """
    if output is None:
        return
    path = local_path(output)
    try:
        why_not = _why_not_writable(path, by_replacing=by_replacing)
    except OSError as exc:
        raise _unwritable(path, exc.strerror or str(exc)) from exc
    if why_not:
        raise _unwritable(path, why_not)


def write_bytes(content: bytes, output: Path | None) -> None:
    """Write to the file (InvalidPayload if that fails), or to standard output unless that is a terminal (the same)."""
    if output is not None:
        _write(content, output)
    elif sys.stdout.isatty():
        raise InvalidPayload("binary output does not go to a terminal; name a file with --output or use a pipe")
    else:
        sys.stdout.buffer.write(content)


def write_text(text: str, output: Path | None) -> None:
    """Write to the file, or to standard output; InvalidPayload if the file cannot be written."""
    if output is not None:
        _write(text.encode(), output)
    else:
        sys.stdout.write(text)


def npy_bytes(vectors: Vectors) -> bytes:
    """The array as an npy file."""
    buffer = io.BytesIO()
    np.save(buffer, vectors, allow_pickle=False)
    return buffer.getvalue()


def local_time(moment: datetime | None) -> str | None:
    """The moment on this machine's clock, to the second."""
    return None if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def seconds(value: float | None) -> str | None:
    """A duration for people."""
    return None if value is None else f"{value:.2f} s"


def _write(content: bytes, output: Path) -> None:
    path = local_path(output)
    try:
        path.write_bytes(content)
    except OSError as exc:
        raise _unwritable(path, exc.strerror or str(exc)) from exc


def _why_not_writable(path: Path, *, by_replacing: bool) -> str | None:
    if path.is_dir():
        return "it is a folder; name a file in it"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if by_replacing and path.exists() and not path.is_file():
        return "it is no regular file; leave --output out, and use a pipe"
    if by_replacing or not path.exists():
        return None if os.access(path.parent, os.W_OK | os.X_OK) else f"the folder {path.parent} is closed to you"
    return None if os.access(path, os.W_OK) else "it is closed to you"


def _unwritable(path: Path, why: str) -> InvalidPayload:
    return InvalidPayload(f"cannot write {path}: {why}", param="--output")
