"""From the rows of a CSV, JSON or Parquet file to inputs: cells as they are written, ids kept beside them.

A row without a text fails alone. What cannot be read (a missing column, a broken row, another encoding) fails the job,
since nobody could say which input is which.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ondol.contract.errors import InvalidPayload, PayloadTooLarge
from ondol.contract.jobs import Pair
from ondol.contract.kinds import JobKind
from ondol.contract.payloads import InputColumns
from workers.sharding.cutter import PlannedInput, refused
from workers.sharding.plan import CutPlan
from workers.training.data.examples import Source
from workers.training.data.problems import CellProblem, Problems, file_error, listed
from workers.training.data.table import Number, Row, Table, scalar, type_name

Id = str | int | float | None

_TEXT = "text"
_TEXT_PAIR = "text_pair"
_ID = "id"
_LONGEST_NUMBER = 40


@dataclass(frozen=True, slots=True)
class UsedColumns:
    """The columns of the file that play a part."""

    text: str
    text_pair: str | None
    id: str | None

    @property
    def texts(self) -> tuple[str, ...]:
        """Those that make the input."""
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)

    @property
    def all(self) -> tuple[str, ...]:
        """Those that are read."""
        return self.texts if self.id is None else tuple(dict.fromkeys((*self.texts, self.id)))


def used_columns(plan: CutPlan, columns: tuple[str, ...], source: Source) -> UsedColumns:
    """Which columns are read; InvalidPayload for one that is named and not there.

    Without being named, `text` is taken, and `id` where there is one; so is `text_pair` of a text classification.
    """
    named = plan.columns or InputColumns()
    if named.text_pair is not None and plan.kind is not JobKind.TEXT_CLASSIFICATION:
        raise InvalidPayload(
            f"text_pair belongs to text-classification; a job of kind {plan.kind} takes single texts",
            param="input_columns.text_pair",
        )
    text = _present(_TEXT, named.text, columns, source, is_named=named.text != _TEXT)
    pair = identifier = None
    if named.text_pair is not None:
        pair = _present(_TEXT_PAIR, named.text_pair, columns, source, is_named=True)
    elif plan.kind is JobKind.TEXT_CLASSIFICATION and _TEXT_PAIR in columns and text != _TEXT_PAIR:
        pair = _TEXT_PAIR
    if named.id is not None:
        identifier = _present(_ID, named.id, columns, source, is_named=True)
    elif _ID in columns and _ID not in (text, pair):
        identifier = _ID
    return UsedColumns(text, pair, identifier)


def inputs_of(table: Table, used: UsedColumns, plan: CutPlan, problems: Problems) -> Iterator[PlannedInput]:
    """One input a row; broken rows are added to `problems`, and come as no input."""
    for row in table.rows(used.all):
        try:
            yield _input_of(row, used, plan)
        except CellProblem as exc:
            problems.add(row.number, row.line, exc)


def _input_of(row: Row, used: UsedColumns, plan: CutPlan) -> PlannedInput:
    _check_no_other(row, used, plan)
    identifier = None if used.id is None else _id(row, used.id)
    texts = [_text(row, column) for column in used.texts]
    for column, text in zip(used.texts, texts, strict=True):
        if not text:
            return refused(InvalidPayload(f"row {row.number:,}: column {column!r} is empty"), id=identifier)
    sizes = [len(text.encode()) for text in texts]
    if max(sizes) > plan.max_text_bytes:
        message = f"row {row.number:,}: the text has {max(sizes):,} bytes; at most {plan.max_text_bytes:,} are taken"
        return refused(PayloadTooLarge(message), id=identifier)
    value: str | Pair = texts[0] if len(texts) == 1 else {"text": texts[0], "text_pair": texts[1]}
    return PlannedInput(value, plan.estimate.of_text(sum(sizes)), identifier)


def _check_no_other(row: Row, used: UsedColumns, plan: CutPlan) -> None:
    """Rows of JSON may differ: a part that the first row does not have would be lost without a word."""
    for part, column in ((_ID, used.id), (_TEXT_PAIR, used.text_pair)):
        is_part = part == _ID or plan.kind is JobKind.TEXT_CLASSIFICATION
        if column is None and is_part and part in row.cells and part not in used.texts:
            raise CellProblem("is in this row, but not in the first one; give it in all rows or none", column=part)


def _text(row: Row, column: str) -> str:
    """The cell as a string, empty for null."""
    return "" if row.cells.get(column, "") is None else scalar(row, column)


def _id(row: Row, column: str) -> Id:
    cell = row.cells.get(column)
    if isinstance(cell, Number):
        return _number(cell)
    if cell is None or isinstance(cell, str):
        return cell
    raise CellProblem(f"is {type_name(cell)}; an id is a string or a number", column=column)


def _number(written: Number) -> Id:
    """The number of a JSON or Parquet file; one that has no exact place in JSON stays as it is written."""
    text = str(written)
    if len(text) > _LONGEST_NUMBER:
        return text
    try:
        return int(text)
    except ValueError:
        value = float(text)
        return value if math.isfinite(value) else text


def _present(part: str, name: str, columns: tuple[str, ...], source: Source, *, is_named: bool) -> str:
    if name in columns:
        return name
    have = listed(list(columns), limit=20)
    if is_named:
        message = f"has no column {name!r}, which input_columns.{part} names; it has {have}"
        raise file_error(source, message, param=f"input_columns.{part}")
    raise file_error(
        source, f"has no column {name!r}; it has {have}: rename one to {part!r}, or name yours in input_columns.{part}"
    )
