"""Reads the rows of text-classification: text, perhaps a second text, and the label; or a chat of OpenAI's form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ondol.contract.fine_tune import FineTuneOptions
from workers.training.data.columns import text_columns
from workers.training.data.examples import REGRESSION, Source, TextRows
from workers.training.data.label_cells import LabelCells, problem_type_by
from workers.training.data.problems import CellProblem, Problems, shown
from workers.training.data.table import MAX_CELL_CHARS, Row, Table, scalar, type_name

Parts = tuple[str, str | None, Any]
"""Text, second text, label cell."""


def read_text_rows(
    table: Table, options: FineTuneOptions, source: Source, problems: Problems, *, problem_type: str | None
) -> TextRows:
    """All rows of `table`; broken ones are added to `problems`. `problem_type`: what another file settled."""
    columns = text_columns(table.columns, options, source)
    rows = TextRows(source, columns, "", pairs=[] if "text_pair" in columns else None)
    problem_type = problem_type or options.problem_type
    parts_of = _chat(rows) if "messages" in columns else _cells(columns)
    label_column = columns.get("label", "messages")
    cells: LabelCells | None = None
    for row in table.rows(list(columns.values())):
        try:
            text, pair, label = parts_of(row)
            if cells is None:
                kind = problem_type or problem_type_by(label, delimiter=options.label_delimiter)
                cells = LabelCells(kind, label_column, delimiter=options.label_delimiter)
            _append(rows, text, pair, cells, label)
        except CellProblem as exc:
            problems.add(row.number, row.line, exc)
    rows.problem_type = cells.problem_type if cells else problem_type or ""
    return rows


def _append(rows: TextRows, text: str, pair: str | None, cells: LabelCells, label: Any) -> None:
    if cells.problem_type == REGRESSION:
        rows.scores.append(cells.score(label))
    else:
        rows.labels.append(cells.labels(label))
    rows.texts.append(text)
    if rows.pairs is not None:
        rows.pairs.append(pair or "")


def _cells(columns: dict[str, str]) -> Callable[[Row], Parts]:
    text_column, label_column, pair_column = columns["text"], columns["label"], columns.get("text_pair")

    def parts_of(row: Row) -> Parts:
        text = checked_text(scalar(row, text_column), text_column)
        pair = None
        if pair_column is not None:
            pair = checked_text(scalar(row, pair_column), pair_column)
        elif "text_pair" in row.cells:
            raise CellProblem(
                "is in this row, but not in the first one; give it in all rows or none", column="text_pair"
            )
        if label_column not in row.cells:
            raise CellProblem("is missing in this row; every row needs it", column=label_column)
        return text, pair, row.cells[label_column]

    return parts_of


def _chat(rows: TextRows) -> Callable[[Row], Parts]:
    """The user's message is the text, the assistant's the label; the system's is counted and not trained on."""

    def parts_of(row: Row) -> Parts:
        by_role: dict[str, str] = {}
        for spoken in _messages(row):
            role: Any = spoken.get("role")
            content = _content(spoken.get("content"))
            if role not in ("system", "developer", "user", "assistant"):
                raise CellProblem(f"has a message of role {shown(role)}; use user and assistant", column="messages")
            if role in by_role:
                advice = "a row has one user message (the text) and one assistant message (the label)"
                raise CellProblem(f"has more than one {role} message; {advice}", column="messages")
            by_role[role] = content
        missing = [role for role in ("user", "assistant") if role not in by_role]
        if missing:
            message = f"has no {missing[0]} message; the user's is the text, the assistant's the label"
            raise CellProblem(message, column="messages")
        rows.num_system_messages += len(by_role) > 2
        return checked_text(by_role["user"], "messages"), None, by_role["assistant"]

    return parts_of


def _messages(row: Row) -> list[dict[str, Any]]:
    messages = row.cells.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise CellProblem('is not a list of {"role": …, "content": …} objects', column="messages")
    return messages


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(texts)
    what = "missing or null" if content is None else type_name(content)
    raise CellProblem(f"has a message whose content is {what}, not text", column="messages")


def checked_text(text: str, column: str) -> str:
    """`text`, if there is something to read in it; CellProblem if not, or if it is longer than any text may be."""
    if not text or text.isspace():
        raise CellProblem("is empty; write a text, or delete the row", column=column)
    if len(text) > MAX_CELL_CHARS:
        message = f"has {len(text):,} characters (at most {MAX_CELL_CHARS:,}); shorten it, models read far less"
        raise CellProblem(message, column=column)
    return text
