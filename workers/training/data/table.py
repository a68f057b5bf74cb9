"""Rows of cells, whatever the format of the file: what the readers of CSV, JSON and Parquet give."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workers.training.data.problems import CellProblem, shown

MAX_CELL_CHARS = 1_000_000
"""Longest text; a model reads a small part of it."""

_SURROGATE = re.compile(r"\\ud", re.IGNORECASE)


class Number(str):
    """A number as it is written in JSON (`7`, `1.50`), or as Parquet's value is written."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its number from 1, the line at which it begins (None: the format has no lines), its cells by column.

    A cell is a string (a `Number` where the file has one), a boolean, None, a list or a dict of such.
    """

    number: int
    line: int | None
    cells: Mapping[str, Any]


class Table(Protocol):
    """A file of rows. `columns` are those of the header; in JSON, the keys of the first row."""

    columns: tuple[str, ...]

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows that can be read, of which only these columns are needed; the others are counted as problems."""
        ...


def scalar(row: Row, column: str) -> str:
    """The cell as the string that is written there; CellProblem for null, lists and objects, or where it is missing."""
    if column not in row.cells:
        raise CellProblem("is missing in this row; every row needs it", column=column)
    cell = row.cells[column]
    if isinstance(cell, str):
        return cell
    return scalar_value(cell, column)


def scalar_value(cell: object, column: str) -> str:
    """`cell` as a string; true and false as JSON writes them."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if cell is None:
        message = 'is null; write a string (the word itself in quotes: "null"), or delete the row'
        raise CellProblem(message, column=column)
    raise CellProblem(f"is {type_name(cell)}, not a string; write one", column=column)


def list_cell(row: Row, column: str) -> list[Any]:
    """The cell as a list; a string is read as JSON, as in CSV. CellProblem if it is none."""
    if column not in row.cells:
        raise CellProblem("is missing in this row; every row needs it", column=column)
    cell = row.cells[column]
    if isinstance(cell, str) and not isinstance(cell, Number):
        try:
            cell = load_json(cell)
        except CellProblem as exc:
            message = f'is not a JSON list ({exc.message}); write one, as ["a", "b"] with double quotation marks'
            raise CellProblem(message, column=column) from exc
    if not isinstance(cell, list):
        what = "null" if cell is None else type_name(cell)
        raise CellProblem(f"is {what}, not a list; write one", column=column)
    return cell


def type_name(cell: object) -> str:
    """What a cell is, in words."""
    if isinstance(cell, Number):
        return f"the number {shown(str(cell))}"
    if isinstance(cell, str):
        return "a string"
    return "a list" if isinstance(cell, list) else "an object" if isinstance(cell, dict) else shown(cell)


def load_json(text: str) -> Any:
    """The JSON value in `text`, numbers as they are written; CellProblem says what is wrong with it."""
    try:
        value = JSON_DECODER.decode(text)
    except json.JSONDecodeError as exc:
        raise CellProblem(f"not JSON: {exc.msg} at character {exc.colno:,}") from exc
    except RecursionError as exc:
        raise CellProblem("not readable: nested too deeply") from exc
    check_surrogates(text)
    return value


def check_surrogates(text: str) -> None:
    """CellProblem if the JSON `text` has half of a character (one escape of a surrogate pair), which is no text."""
    if _SURROGATE.search(text):
        try:
            json.dumps(json.loads(text), ensure_ascii=False).encode()
        except UnicodeEncodeError as exc:
            raise CellProblem("has half of a character (a lone \\ud… escape); write the whole character") from exc


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise CellProblem(f"the key {shown(twice)} stands twice in one object; keep one")
    return found


def _no_constant(name: str) -> None:
    raise CellProblem(f"not JSON: {name} is not a JSON value")


JSON_DECODER = json.JSONDecoder(
    parse_int=Number, parse_float=Number, parse_constant=_no_constant, object_pairs_hook=_object
)
"""Made once: a decoder is a cycle of objects, and files have a million lines."""
