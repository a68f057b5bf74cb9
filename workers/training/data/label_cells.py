"""What stands in a label cell: one label, several, or a number."""

from __future__ import annotations

import re
from typing import Any

from workers.training.data.examples import MULTI_LABEL, SINGLE_LABEL
from workers.training.data.problems import CellProblem, shown
from workers.training.data.table import Number, load_json, scalar_value

MAX_LABEL_CHARS = 256

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


def problem_type_by(cell: Any, *, delimiter: str | None) -> str:
    """What is trained, by the first row's label: several labels if it is a list, or if a delimiter is given."""
    return MULTI_LABEL if delimiter is not None or _as_list(cell) is not None else SINGLE_LABEL


class LabelCells:
    """Reads the cells of one label column; labels are kept as they are written, equal ones as one object."""

    def __init__(self, problem_type: str, column: str, *, delimiter: str | None) -> None:
        self.problem_type = problem_type
        self._column = column
        self._delimiter = delimiter
        self._seen: dict[tuple[str, ...], tuple[str, ...]] = {}

    def labels(self, cell: Any) -> tuple[str, ...]:
        """The labels of a row; CellProblem if there is none, or more than the training has."""
        names = self._several(cell) if self.problem_type == MULTI_LABEL else self._one(cell)
        for name in names:
            self._check(name)
        return self._seen.setdefault(names, names)

    def score(self, cell: Any) -> float:
        """The number of a row; CellProblem if it is none."""
        text = scalar_value(cell, self._column).strip()
        if not _NUMBER.fullmatch(text):
            message = f"{shown(text)} is not a number, and regression needs one; correct it, or leave problem_type out"
            raise CellProblem(message, column=self._column)
        value = float(text)
        if abs(value) > 1e30:
            raise CellProblem(f"{shown(text)} is too large; scale the numbers", column=self._column)
        return value

    def _one(self, cell: Any) -> tuple[str, ...]:
        if _as_list(cell) is not None:
            message = (
                "is a list, but one label a row is trained; set options.problem_type to "
                f"{MULTI_LABEL} if a row may have several"
            )
            raise CellProblem(message, column=self._column)
        return (scalar_value(cell, self._column),)

    def _several(self, cell: Any) -> tuple[str, ...]:
        names = _as_list(cell)
        if names is None:
            text = scalar_value(cell, self._column)
            if self._delimiter is None:
                message = (
                    f'{shown(text)} is not a JSON list of labels; write ["a", "b"], or set options.label_delimiter to '
                    "what stands between labels"
                )
                raise CellProblem(message, column=self._column)
            names = [part.strip() for part in text.split(self._delimiter)] if text.strip() else []
        found = [scalar_value(name, self._column) for name in names]
        return tuple(dict.fromkeys(found))

    def _check(self, name: str) -> None:
        if not name.strip():
            advice = "write a label, or delete the row" if self.problem_type == SINGLE_LABEL else "remove it"
            raise CellProblem(f"has an empty label; {advice}", column=self._column)
        if len(name) > MAX_LABEL_CHARS:
            message = f"a label of {len(name):,} characters (at most {MAX_LABEL_CHARS}); is this the label column?"
            raise CellProblem(message, column=self._column)


def _as_list(cell: Any) -> list[Any] | None:
    """The cell as a list of labels if it is one, or is one written as JSON, as in CSV."""
    if isinstance(cell, list):
        return cell
    if not isinstance(cell, str) or isinstance(cell, Number) or not cell.lstrip().startswith("["):
        return None
    try:
        value = load_json(cell)
    except CellProblem:
        return None
    return value if isinstance(value, list) else None
